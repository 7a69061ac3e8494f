"""The pregenerate benchmark: its commands, its texts, its view of memory, its figures, and the shim."""

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from benchmarks import pregenerate, record
from benchmarks.pregenerate import Settings

CORPUS = "One sentence .\nAnother .\n\nA second document .\n \nA third one .\n"
SAMPLES = {
    "corpus_mb": [2.0],
    "ours_seconds": [1.0, 2.0, 50.0],
    "ours_peak_mb": [100.0, 300.0, 200.0],
    "ours_sequences": [7.0, 7.0, 7.0],
    "ours_growth_peaks_mb": [200.0, 240.0],
}
ORIGINAL_SAMPLES = {
    "original_seconds": [8.0, 10.0, 9.0],
    "original_peak_mb": [500.0, 500.0, 500.0],
    "original_sequences": [8.0, 6.0, 7.0],
    "original_growth_on_mb": [1.5],
    "original_growth_peaks_mb": [400.0, 1000.0],
}
# An original in a few lines: the arguments, the imports and the files that the benchmark relies on.
SCRIPT = """
    import sys
    from argparse import ArgumentParser
    from pathlib import Path

    import boto3, numpy
    from botocore.exceptions import ClientError
    from tokenization import read

    in_the_cloud = True
    try:
        import moxing
    except ImportError:
        in_the_cloud = False


    def main():
        parser = ArgumentParser()
        for name in ("train_corpus", "output_dir", "bert_model"):
            parser.add_argument(f"--{name}", type=Path, required=True)
        parser.add_argument("--do_lower_case", action="store_true")
        parser.add_argument("--max_seq_len", type=numpy.int)
        parser.add_argument("--epochs_to_generate", type=int, default=3)
        options = parser.parse_args()
        assert not in_the_cloud and options.do_lower_case and options.epochs_to_generate == 1
        assert sys.argv[0].endswith("pregenerate_training_data.py")
        assert read(options.bert_model / "vocab.txt")
        options.output_dir.mkdir()
        lines = len(options.train_corpus.read_text().split())
        metrics = f'{{"num_training_examples": {lines}, "max_seq_len": {options.max_seq_len}}}'
        (options.output_dir / "epoch_0_metrics.json").write_text(metrics)
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(CORPUS, encoding="utf-8")
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose folder TinyBERT holds the made-up original."""
    folder = tmp_path / "checkout" / "TinyBERT"
    folder.mkdir(parents=True)
    (folder / "pregenerate_training_data.py").write_text(dedent(SCRIPT), encoding="utf-8")
    (folder / "tokenization.py").write_text("def read(path): return path.read_text()", encoding="utf-8")
    return tmp_path / "checkout"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    return folder


# -------------------------------------------------------------------------------- the commands
def test_ours_is_the_users_command(tmp_path):
    corpus = tmp_path / 'été "1".txt'
    settings = Settings(corpus, workers=5, tokenizer="/models/teacher")
    command = pregenerate.ours(settings, corpus, tmp_path)
    assert command[:4] == [sys.executable, "-m", "launcher.cli", "pregenerate"]
    given = dict(zip(command[4::2], command[5::2], strict=True))
    assert json.loads(given.pop("--corpus.files")) == [str(corpus)]
    assert given == {
        "--tokenizer": "/models/teacher",
        "--packing.method": "pairs",
        "--packing.max_length": "128",
        "--workers": "5",
        "--run": str(tmp_path / "run"),
    }


def test_the_originals_command_writes_one_epoch_and_keeps_its_other_defaults(corpus, tmp_path):
    settings = Settings(corpus, reference=Path("/reference"), tokenizer="/models/teacher")
    command = pregenerate.original(settings, corpus, tmp_path)
    assert command[1:5] == ["-m", "benchmarks.pregenerate", "--original", "/reference"]
    assert [word for word in command[5:] if word.startswith("--")] == [
        "--train_corpus",
        "--output_dir",
        "--bert_model",
        "--do_lower_case",
        "--max_seq_len",
        "--epochs_to_generate",
    ]
    assert command[-3:] == ["128", "--epochs_to_generate", "1"]


def test_the_rows_of_each_side_are_read_from_what_it_wrote(tmp_path):
    for folder, file, text in (
        ("run", "summary.json", {"job": "pregenerate", "sequences": 12}),
        ("epochs", "epoch_0_metrics.json", {"num_training_examples": 34, "max_seq_len": 128}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(json.dumps(text), encoding="utf-8")
    assert pregenerate.ours_sequences(tmp_path) == 12
    assert pregenerate.original_sequences(tmp_path) == 34


def test_the_original_runs_unedited_and_its_numbers_are_kept(checkout, corpus, tokenizer, tmp_path):
    reference = record.reference_folder(str(checkout), "pregenerate_training_data.py")
    settings = Settings(corpus, reference=reference, tokenizer=str(tokenizer))
    command = pregenerate.original(settings, corpus, tmp_path)
    run = pregenerate.run_command("original", command, tmp_path / "log.txt")
    assert run.seconds > 0
    assert run.peak_mb > 0
    assert pregenerate.original_sequences(tmp_path) == len(CORPUS.split())


def test_a_side_that_fails_says_why(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such luck')"]
    with pytest.raises(RuntimeError, match=r"ours: its command ended, exit 1:\nno such luck"):
        pregenerate.run_command("ours", command, tmp_path / "log.txt")


# ----------------------------------------------------------------------------------- the texts
@pytest.mark.parametrize("length", range(20, len(CORPUS) + 2))
def test_the_first_megabytes_end_with_a_document(length, corpus):
    text = pregenerate.first_documents(corpus, megabytes=length / 1e6).decode()
    assert CORPUS.startswith(text)
    assert len(text) <= length
    whole = ["", CORPUS[: CORPUS.index("A second")], CORPUS[: CORPUS.index("A third")], CORPUS]
    assert text == max((start for start in whole if len(start) <= length), key=len)


def test_copies_are_whole_and_apart(corpus, tmp_path):
    corpus.write_text("a\n\nb", encoding="utf-8")
    copies = pregenerate.repeat(corpus, tmp_path / "copies.txt", 3).read_text(encoding="utf-8")
    assert copies.split("\n\n") == ["a", "b", "a", "b", "a", "b", ""]


# --------------------------------------------------------------------------------- what it sees
def test_a_family_is_a_process_and_its_descendants():
    parents = {1: 0, 2: 1, 3: 2, 4: 3, 5: 2, 6: 1, 7: 6}
    assert pregenerate.family(2, parents) == {2, 3, 4, 5}
    assert pregenerate.family(7, parents) == {7}
    assert pregenerate.family(99, parents) == {99}  # it has ended


def test_a_child_with_an_odd_name_is_seen_and_then_gone(tmp_path):
    python = tmp_path / "a) b (c"
    python.symlink_to(sys.executable)
    command = [str(python), "-c", "print(1, flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert pregenerate.parents()[child.pid] == os.getpid()
        assert pregenerate.process_mb(child.pid) > 1
        child.communicate(b"\n")
    assert child.pid not in pregenerate.parents()
    assert pregenerate.process_mb(child.pid) == 0


@pytest.mark.skipif(not pregenerate.HAS_PSS, reason="resident sizes count shared pages in every process")
def test_memory_is_that_of_all_descendants_with_shared_pages_once():
    program = """
        import os
        block = bytearray(os.urandom(1) * (100 << 20))
        for _ in range(2):
            os.fork()
        own = bytearray(os.urandom(1) * (30 << 20))
        os.write(1, b"ready\\n")
        os.read(0, 1)
    """
    command = [sys.executable, "-c", dedent(program)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(4):  # two forks make four processes
            assert child.stdout.readline() == b"ready\n"
        processes = pregenerate.family(child.pid, pregenerate.parents())
        together = sum(map(pregenerate.process_mb, processes))
    assert len(processes) == 4
    assert 100 + 4 * 30 <= together < 2 * 100 + 4 * 30


# -------------------------------------------------------------------------------------- figures
def test_figures_are_of_medians():
    figures = pregenerate.summarise({**SAMPLES, **ORIGINAL_SAMPLES})
    assert figures == {
        "speedup": 4.5,
        "mb_per_s": 1.0,
        "peak_mb": 200.0,
        "growth_10x": 1.2,
        "sequences": 7.0,
        "original_mb_per_s": 0.2222,
        "original_peak_mb": 500.0,
        "original_growth_10x": 2.5,
        "original_sequences": 7.0,
        "corpus_mb": 2.0,
        "original_growth_on_mb": 1.5,
    }


def test_the_table_says_on_what_the_original_grew(capsys, corpus):
    pregenerate.show(pregenerate.summarise({**SAMPLES, **ORIGINAL_SAMPLES}), Settings(corpus))
    printed = capsys.readouterr().out
    assert "ours on all of it, the original on its first 1.5 MB." in printed
    assert "Ours: 4.50 times the original's MB/s" in printed


def test_ours_alone_has_no_ratio(capsys, corpus):
    figures = pregenerate.summarise(SAMPLES)
    assert set(figures) == {"mb_per_s", "peak_mb", "growth_10x", "sequences", "corpus_mb"}
    pregenerate.show(figures, Settings(corpus))
    printed = capsys.readouterr().out
    assert "original on its first" not in printed
    assert "Ours alone" in printed


# ------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--rounds", "0"], "--rounds: 0; give 1 or more"),
        (["--workers", "-1"], "--workers: -1; give 1 or more"),
        (["--corpus", "nowhere.txt"], "--corpus: nowhere.txt is no .txt file"),
        (["--tokenizer", "no such folder"], "no such folder"),
        (["--reference", "nowhere"], "give a checkout"),
        (["--original-growth-on", "0"], "hold no two whole documents"),
        (["--original-growth-on", "nan"], "hold no two whole documents"),
        (["--original-growth-on", "0.00003"], "hold no two whole documents"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_2(change, said, corpus, checkout, tokenizer, capsys):
    right = ["--corpus", str(corpus), "--reference", str(checkout), "--tokenizer", str(tokenizer)]
    assert pregenerate.main([*right, *change]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert said in printed.err


def test_a_tokenizer_without_a_vocabulary_file_is_refused_only_beside_the_original(corpus, tmp_path):
    settings = Settings(corpus, tokenizer=str(tmp_path))
    pregenerate.check(settings)
    with pytest.raises(ValueError, match=r"no vocab\.txt"):
        pregenerate.check(Settings(corpus, reference=tmp_path, tokenizer=str(tmp_path)))
