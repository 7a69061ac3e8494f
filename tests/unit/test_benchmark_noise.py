"""Benchmark `noise`: its figures, its refusals, and a run of its commands with a made-up original."""

import json
from pathlib import Path

import pytest

from benchmarks import noise

# An original in a few lines, which repeats every sentence.
SCRIPT = """
import argparse

parser = argparse.ArgumentParser()
for name in ("input", "output", "n_iter"):
    parser.add_argument(f"--{name}")
for name in ("no_analyzer", "lower", "parallel"):
    parser.add_argument(f"--{name}", action="store_true")
options = parser.parse_args()
assert options.no_analyzer and options.lower and options.n_iter == "20"
with open(options.input) as lines, open(options.output, "w") as out:
    for line in lines:
        assert line != "sentence\\n", "it reads no header"
        out.write(f"{line.strip()}\\tdummy\\n" * (3 if options.parallel else 2))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty sentences."""
    path = tmp_path / "train.tsv"
    rows = "".join(f"{place}\tsentence number {place} of a few\n" for place in range(20))
    path.write_text(f"label\tsentence\n{rows}", encoding="utf-8")
    return path


def test_figures_leave_out_start_up():
    samples = {
        "sentences": [110],
        "original_few_seconds": [1.0],
        "original_few_rows": [100],
        "original_few_repeated": [0],
        "original_few_peak_mb": [5.0],
        "original_all_seconds": [11.0, 10.0, 30.0],
        "original_all_rows": [1100, 1100, 1100],
        "original_all_repeated": [99],
        "original_all_peak_mb": [50.0],
        "ours_few_seconds": [3.0],
        "ours_few_rows": [90],
        "ours_few_repeated": [0],
        "ours_few_peak_mb": [500.0],
        "ours_all_seconds": [5.0],
        "ours_all_rows": [1090],
        "ours_all_repeated": [0],
        "ours_all_peak_mb": [600.0],
    }
    figures = noise.summarise(samples)
    assert (figures["original_rows_per_s"], figures["ours_rows_per_s"]) == (100.0, 500.0)
    assert figures["speedup"] == 2.2
    assert (figures["ours_peak_mb"], figures["ours_rows"]) == (600.0, 1090)
    assert (figures["ours_growth_mb"], figures["ours_start_s"]) == (1000.0, 3.0)
    assert (figures["original_repeated_share"], figures["ours_repeated_share"]) == (0.1, 0.0)


def test_a_repeated_variant_is_a_sentence_or_another_variant(tmp_path):
    sentences = ["a b", "c d"]
    (tmp_path / "out").write_text(
        "".join(f"{text}\tdummy\n" for text in ["a b", "a  #", "A b", "c d", "a #"])
    )
    assert noise._count(noise.written(tmp_path / "out"), sentences) == (5, 2)
    (tmp_path / "run").mkdir()
    lines = [json.dumps({"sentence": text, "origin": 0}) + "\n" for text in ["A b ", "# b", "c d"]]
    (tmp_path / "run" / "augmented.jsonl").write_text("".join(lines))
    assert noise._count(noise.written(tmp_path / "run"), sentences) == (3, 0)


def test_a_side_runs_its_command_in_turns(tmp_path, data, monkeypatch):
    """Ours is stood in for: the real command is test_augment's and takes seconds to start."""
    (tmp_path / "iclassifier").mkdir()
    (tmp_path / "iclassifier" / noise.SCRIPT).write_text(SCRIPT, encoding="utf-8")
    settings = noise.Settings(data, tmp_path / "iclassifier", rounds=2)
    found = noise.sides(settings)
    assert list(found) == ["original", "original_parallel", "ours", "ours_parallel"]
    monkeypatch.setattr(noise, "sides", lambda _: {name: found[name] for name in list(found)[:2]})
    samples = noise.measure(settings, settings.sentences())
    assert samples["original_few_rows"] == [20, 20]
    assert samples["original_all_rows"] == [40, 40]
    assert samples["original_parallel_all_rows"] == [60, 60]
    assert samples["original_parallel_all_repeated"] == [40, 40]
    assert all(value > 0 for value in samples["original_all_seconds"])


@pytest.mark.slow
def test_ours_alone(tmp_path, data, capsys):
    assert noise.main(["--data", str(data), "--rounds", "1", "--json", str(tmp_path / "noise.json")]) == 0
    figures = json.loads((tmp_path / "noise.json").read_text(encoding="utf-8"))["figures"]
    assert figures["ours_rows"] == figures["ours_parallel_rows"] > 20
    assert "--reference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "--rounds: give 1 or more"),
        (["--reference", "."], "no augment_data.py there"),
        (["--data", "absent.tsv"], "--data absent.tsv: no such file"),
        (["--data", "other.tsv"], "no column `sentence`; it has text"),
        (["--data", "short.tsv"], "1 rows; give more than 10"),
    ],
)
def test_what_can_not_be_measured_is_refused(tmp_path, data, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    Path("other.tsv").write_text("text\na\n", encoding="utf-8")
    Path("short.tsv").write_text("sentence\na\n", encoding="utf-8")
    assert noise.main(["--data", str(data), *arguments]) == 2
    assert said in capsys.readouterr().err
