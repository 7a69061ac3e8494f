"""Benchmark `fuzz`: damaged and malicious files given to every reader.

    python -m benchmarks.fuzz [--cases 5000] [--seed 0] [--only READER] [--case N] [--json FILE]

Case N takes reader N modulo their number, changes a good file as a generator seeded with N says, and
reads it. It passes where the reader answers, or raises a ValueError or OSError that names the file: what
the command turns into one line and exit code 2. Any other exception fails, so do ten seconds and a gigabyte
too much.
`--case` repeats one with its traceback.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentError

from benchmarks.record import memory_mb, print_table, write_record
from data_pipeline import augment as augmented
from data_pipeline.augment import AugmentConfig
from data_pipeline.corpus import CorpusConfig, corpus_pieces
from data_pipeline.packing import Row
from data_pipeline.readers import zstd
from data_pipeline.shards import MANIFEST, VERSION, Manifest, file_sha256, write_manifest, write_shard
from data_pipeline.store import ShardFolder
from data_pipeline.tasks import Examples, TaskConfig, encode_split, label_set, read_examples
from data_pipeline.verify import verify
from data_pipeline.vocabulary import load_vocabulary
from data_pipeline.word_vectors import first_vectors, read_vectors
from data_pipeline.words import WordsConfig, build_tokenizer, write_vocabulary
from distill import predict
from distill.model_facts import model_config, own_labels, positions
from distill.outputs import Split
from distill.settings import PredictConfig, TeacherConfig
from launcher.settings import job_of, parse

SECONDS = 10  # longer is a hang
MEMORY = 1 << 30  # bytes that a case may ask for
SENTENCES = ["a good film", "not so good", "it was bad , bad", "never mind", "great fun", "dull"]

# Nine lines of YAML that stand for nine to the eighth values.
BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n".encode() for old, new in itertools.pairwise("abcdefgh")
)
NUMBERS = [b"-Infinity", b"1e999", b"-1", b"0", b"9" * 25, b"9" * 5000]
# What texts and JSON may hold and readers may stumble over.
NASTY = [
    b"\0", b"\r", b"\n", b"\n\n", b"\t", b'"', b"'", b",", b"\xff", b"\xef\xbb\xbf",
    b"\xe2\x80\xa8", b"\x1a", b"\\ud800", b"\xed\xa0\x80", b"{", b"}", b"[", b"null", b"NaN",
    *NUMBERS, b"[" * 3000, b'{"a":' * 3000, b"&a *a ", b"!!python/object:os.system ",
    b"<!--", BOMB, b"<" * 2000, b"{{" * 2000, b"a" * 200_000, b"a " * 70_000, b"../../../etc/passwd",
    b"%s%n", b"\x1b[2J",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**63, -(2**40), 1e300, float("nan"), float("inf"), "", "a", "../x", "\0",
    [], {}, [[]], {"a": None}, "x" * 10_000, ["a"] * 100,
]  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Attributes:
        make: Writes good files into a folder.
        read: Reads what lies there.
        files: Pattern of those that are changed.
        seal: Renews checksums after a change, for one that is meant to harm.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    files: str = "*"
    seal: Callable[[Path], None] | None = None


def main(arguments: list[str] | None = None) -> int:
    """Run the cases, print a table, write the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(READERS))
    parser.add_argument("--case", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    readers = {options.only: READERS[options.only]} if options.only else READERS
    numbers = range(options.cases) if options.case is None else [options.case]
    with tempfile.TemporaryDirectory() as name:
        made = make_all(Path(name), readers)
        with bounded_memory():
            found = []
            for number in numbers:
                found.append(outcome(Path(name), made, options.seed, number))
                reader, what, told = found[-1]
                if what == "failed" or options.case is not None:
                    print(f"case {number} ({reader}): {what}: {told}", file=sys.stderr)
    counts = Counter((reader, what) for reader, what, _ in found)
    figures = {
        what: sum(counts[reader, what] for reader in readers) for what in ("read", "refused", "failed")
    }
    figures["cases"] = len(found)
    rows = [
        (reader, *(str(counts[reader, what]) for what in ("read", "refused", "failed")))
        for reader in readers
    ]
    rows.append(("all", *(str(figures[what]) for what in ("read", "refused", "failed"))))
    print_table(
        f"{len(found)} damaged or malicious files",
        ("reader", "read", "refused", "failed"),
        rows,
        f"Failed: an exception that is no clear refusal, {SECONDS} s, or {MEMORY >> 20} MB.",
    )
    if options.json:
        typed = sys.argv[1:] if arguments is None else arguments
        write_record(options.json, "fuzz", typed, figures, {})
    return 1 if figures["failed"] else 0


def make_all(folder: Path, readers: dict[str, Reader]) -> dict[str, Reader]:
    """Write every reader's good files once, and read them: they are good."""
    for name, reader in readers.items():
        good = folder / name
        good.mkdir()
        reader.make(good)
        with contextlib.redirect_stderr(io.StringIO()):
            reader.read(good)
    return readers


def outcome(folder: Path, readers: dict[str, Reader], seed: int, number: int) -> tuple[str, str, str]:
    """One case: the reader, `read`, `refused` or `failed`, and what was said."""
    rng = random.Random(f"{seed} {number}")
    name = list(readers)[number % len(readers)]
    reader, case = readers[name], folder / f"case-{number}"
    shutil.copytree(folder / name, case)
    try:
        files = sorted(path for path in case.rglob(reader.files) if path.is_file())
        chosen = rng.choice(files)
        unpack, pack = (
            PACKED[chosen.suffix] if chosen.suffix in PACKED and rng.random() < 0.7 else (bytes, bytes)
        )
        chosen.write_bytes(pack(changed(unpack(chosen.read_bytes()), rng)))
        if reader.seal and rng.random() < 0.5:
            reader.seal(case)
        with limited(), contextlib.redirect_stderr(io.StringIO()):
            reader.read(case)
    except (ValueError, OSError, ArgumentError) as error:
        told = str(error)
        clear = isinstance(error, ArgumentError) or (
            case.name in told and not isinstance(error, UnicodeError)
        )
        return name, "refused" if clear else "failed", f"{type(error).__name__}: {told}"[:300]
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return name, "failed", "".join(traceback.format_exception(error)[-8:])[-1500:]
    finally:
        shutil.rmtree(case)
    return name, "read", ""


class TooLong(BaseException):
    """A case that does not end."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """End a case that hangs."""

    def ring(number: int, frame: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process ask for no more than MEMORY beyond what it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_mb("VmSize") * 2**20) + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# ------------------------------------------------------------------------------------ the changes
# What is within compressed files is changed as well as they themselves.
PACKED = {
    ".gz": (gzip.decompress, gzip.compress),
    ".bz2": (bz2.decompress, bz2.compress),
    ".xz": (lzma.decompress, lzma.compress),
    ".zst": (zstd.decompress, zstd.compress),
}


def changed(data: bytes, rng: random.Random) -> bytes:
    """A file with one to three changes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(CHANGES)(data, rng)
    return data


def _place(data: bytes, rng: random.Random) -> tuple[int, int]:
    """A short run somewhere, more often near the beginning, where headers are."""
    begin = rng.randrange(min(len(data), 128) + 1) if rng.random() < 0.4 else rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.choice((1, 2, 4, 8, 64, 512)))


def flip(data: bytes, rng: random.Random) -> bytes:
    """Some bytes others."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        if content:
            content[_place(data, rng)[0] % len(content)] = rng.choice(
                (0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256))
            )
    return bytes(content)


def cut(data: bytes, rng: random.Random) -> bytes:
    """It ends early."""
    return data[: _place(data, rng)[0]]


def drop(data: bytes, rng: random.Random) -> bytes:
    """A run is missing."""
    begin, end = _place(data, rng)
    return data[:begin] + data[end:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """A run is there many times."""
    begin, end = _place(data, rng)
    return data[:end] + data[begin:end] * rng.choice((1, 2, 1000)) + data[end:]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Something nasty in between."""
    begin, _ = _place(data, rng)
    return data[:begin] + rng.choice(NASTY) + data[begin:]


def renumber(data: bytes, rng: random.Random) -> bytes:
    """A number in a text, or four bytes of one, is another."""
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?", data))
    if found and rng.random() < 0.7:
        one = rng.choice(found)
        return data[: one.start()] + rng.choice(NUMBERS) + data[one.end() :]
    begin, _ = _place(data, rng)
    number = struct.pack("<i", rng.choice((0, -1, 1, 2**31 - 1, -(2**31), 2**16, 10**6)))
    return data[:begin] + number + data[begin + 4 :]


def restructure(data: bytes, rng: random.Random) -> bytes:
    """A value somewhere in JSON, or in a line of it, is another; other files get something nasty."""
    lines = data.splitlines(keepends=True) or [b""]
    number = rng.randrange(len(lines))
    try:
        return json.dumps(_revalued(json.loads(data), rng)).encode()
    except (ValueError, RecursionError):
        pass
    try:
        lines[number] = json.dumps(_revalued(json.loads(lines[number]), rng)).encode() + b"\n"
    except (ValueError, RecursionError):
        return insert(data, rng)
    return b"".join(lines)


def _revalued(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(VALUES)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    if rng.random() < 0.1:
        del value[key]
    else:
        value[key] = _revalued(value[key], rng)
    return value


def replace(data: bytes, rng: random.Random) -> bytes:
    """Something else altogether."""
    return rng.choice(
        (
            data + BOMB,
            b"",
            b"\n",
            rng.randbytes(200),
            b"\0" * 1000,
            b"PK\x03\x04",
            gzip.compress(data),
            *NASTY,
        )
    )


CHANGES = [flip, cut, drop, repeat, insert, insert, renumber, renumber, restructure, restructure, replace]


# ----------------------------------------------------------------------------------- the readers
def _write_task(folder: Path, form: str) -> None:
    rows = [(sentence, str(number % 2)) for number, sentence in enumerate(SENTENCES)]
    if form == "jsonl":
        lines = [json.dumps({"sentence": text, "label": label}) for text, label in rows]
    else:
        mark = "\t" if form == "tsv" else ","
        quote = str if form == "tsv" else json.dumps
        lines = [f"sentence{mark}label", *(f"{quote(text)}{mark}{label}" for text, label in rows)]
    (folder / f"train.{form}").write_text("\n".join(lines) + "\n")


def task(form: str) -> Reader:
    """A labelled file, read as each kind of task."""

    def make(folder: Path) -> None:
        _write_task(folder, form)
        _words(folder / "words")

    def read(folder: Path) -> None:
        file = str(folder / f"train.{form}")
        vocabulary = load_vocabulary.__wrapped__(str(folder / "words"))
        for kind in ("classification", "multi_label", "regression"):
            settings = TaskConfig(file, file, kind=kind, max_length=16)
            encode_split(file, settings, vocabulary, label_set(settings))

    return Reader(make, read, f"train.{form}")


def _words(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_vocabulary(build_tokenizer(SENTENCES, WordsConfig()), folder)


VECTORS = np.random.default_rng(0).standard_normal((6, 4)).astype("<f4")
WORDS = ["good", "bad", "film", "great", "fun", "dull"]


def _vectors_text(header: bool) -> bytes:
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in zip(WORDS, VECTORS.tolist(), strict=True)]
    return "\n".join([*(["6 4"] if header else []), *lines, ""]).encode()


def _vectors_binary() -> bytes:
    rows = (word.encode() + b" " + row.tobytes() for word, row in zip(WORDS, VECTORS, strict=True))
    return b"6 4\n" + b"\n".join(rows)


def _vectors_fasttext() -> bytes:
    head = struct.pack("<2i12id", 793712314, 12, 4, 5, 5, 1, 5, 1, 1, 1, 10, 3, 4, 100, 1e-4)
    words = b"".join(word.encode() + b"\0" + struct.pack("<qb", 3, 0) for word in WORDS)
    matrix = np.concatenate([VECTORS, np.ones((10, 4), "<f4")]).tobytes()
    return (
        head + struct.pack("<iiiqq", 6, 6, 0, 18, -1) + words + b"\0" + struct.pack("<qq", 16, 4) + matrix
    )


def vectors(name: str, content: bytes) -> Reader:
    """A file of word vectors."""

    def read(folder: Path) -> None:
        read_vectors(str(folder / name), ["good", "bad", "goodness"])
        first_vectors(str(folder / name), 3)

    return Reader(lambda folder: (folder / name).write_bytes(content), read)


TEXT = "\n".join(["It was good. It was bad.", "So it went.", "", "Another one.", "好。坏。"] * 5).encode()
PAGES = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo/>{}</mediawiki>""".format(
    "".join(
        f"<page><title>T{n}</title><ns>0</ns><revision><text>'''Bold''' [[a|b]] {{{{cite|x}}}} {n}</text>"
        "</revision></page>"
        for n in range(5)
    )
).encode()


def corpus(name: str, content: bytes | None = None) -> Reader:
    """A file or folder of a corpus, read in pieces and again by lines."""

    def make(folder: Path) -> None:
        if content is not None:
            (folder / name).write_bytes(content)
        elif name.endswith(".parquet"):
            from pyarrow import parquet, table

            parquet.write_table(table({"text": SENTENCES * 5, "n": list(range(30))}), folder / name)
        else:
            from datasets import Dataset

            Dataset.from_dict({"text": SENTENCES}).save_to_disk(folder / name)

    def read(folder: Path) -> None:
        for documents in ("blank_line", "line"):
            for size in (100, 1 << 20):
                config = CorpusConfig([str(folder / name)], documents)
                for piece in corpus_pieces(config, size):
                    for _ in piece.documents():
                        pass

    return Reader(make, read)


def _make_shards(folder: Path) -> None:
    blocks = [[Row([2, 5 + i, 6, 3], 4) for i in range(4)] for _ in range(3)]
    placed = write_shard(folder / "shard-000000.tar", blocks, np.dtype(np.uint16))
    checksums = {"shard-000000.tar": file_sha256(folder / "shard-000000.tar")}
    write_manifest(
        folder,
        Manifest(VERSION, "0" * 16, 100, 0, 16, {}, 0, 1, 12, 48, 1, checksums, placed),
    )


def _read_shards(folder: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        verify(str(folder))
    shards = ShardFolder(str(folder))
    shards.refuse_missing()
    for number in range(len(shards.manifest.blocks)):
        shards.block(number)


def _seal_manifest(folder: Path) -> None:
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        content = json.loads((folder / MANIFEST).read_text())
        content.pop("sha256", None)
        content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        (folder / MANIFEST).write_text(json.dumps(content))


RECIPE = b"""teacher:
  path: model
shards: data/shards
student: {layers: 4, heads: 12, dropout: 0.1}
stage:
  epochs: 1.5
  batch_size: 32
  optimizer:
    lr: 1e-3
record:
  log_every: 10
"""


def _read_recipe(folder: Path) -> None:
    recipe = str(folder / "recipe.yaml")
    parse(job_of(recipe), ["--config", recipe])


def _make_model(folder: Path) -> None:
    _words(folder / "model")
    config = {"model_type": "bert", "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8,
              "id2label": {"0": "negative", "1": "positive"}, "vocab_size": 20}  # fmt: skip
    (folder / "model" / "config.json").write_text(json.dumps(config))


def _read_model(folder: Path) -> None:
    model = model_config(str(folder / "model"), "model")
    own_labels(model)
    positions(model)
    vocabulary = load_vocabulary.__wrapped__(str(folder / "model"))
    vocabulary.tokenizer.encode_batch(SENTENCES)


def _make_checkpoints(folder: Path) -> None:
    import torch

    from distill.checkpoints import RECORD

    for step in (5, 10):
        path = folder / f"step-{step:08d}"
        path.mkdir()
        torch.save({"module": {"w": torch.ones(3, 3)}, "step": step, "best": {}}, path / "states.pt")
        (path / RECORD).write_text("{}")
        _seal_checkpoint(path)


def _seal_checkpoint(path: Path) -> None:
    from distill.checkpoints import RECORD, checksum

    record = {file.name: checksum(file) for file in path.glob("*.pt")}
    (path / RECORD).write_text(json.dumps(record))


def _read_checkpoints(folder: Path) -> None:
    from distill.checkpoints import Checkpoints
    from distill.engine import load_safely

    found = Checkpoints(folder, 2)
    if (step := found.newest()) < 0:
        raise ValueError(f"every checkpoint in {folder} is damaged")
    load_safely(str(folder / f"step-{step:08d}" / "states.pt"))


EXAMPLES = Examples(SENTENCES, [], [])


def _outputs(folder: Path) -> Split:
    settings, teacher = TaskConfig("train.tsv", "train.tsv"), TeacherConfig(str(folder / "teacher"))
    return Split(folder / "train", EXAMPLES, settings, teacher)


def _make_outputs(folder: Path) -> None:
    (folder / "teacher").mkdir()
    (folder / "teacher" / "config.json").write_text("{}")
    split = _outputs(folder)
    split.begin()
    for begin in (0, 4):
        split.write(begin, np.zeros((min(4, 6 - begin), 2), np.float32))
    split.finish()


def _read_outputs(folder: Path) -> None:
    split = _outputs(folder)
    split.check()
    split.read()
    split.begin()


def _seal_outputs(folder: Path) -> None:
    _outputs(folder).finish()


AUGMENT = AugmentConfig("train.tsv", "model")


def _make_augmented(folder: Path) -> None:
    augmented.begin_pieces(folder, {"examples": "1"})
    for number in range(2):
        part = range(3 * number, 3 * number + 3)
        lines = [augmented.row(AUGMENT, SENTENCES[n] + " !", None, str(n % 2), n) for n in part]
        augmented.write_piece(folder, number, lines)


def _read_augmented(folder: Path) -> None:
    augmented.begin_pieces(folder, {"examples": "1"})
    examples = Examples(SENTENCES, [], [str(n % 2) for n in range(len(SENTENCES))])
    augmented.join(folder, AUGMENT, examples, 2)
    read_examples(str(folder / "augmented.jsonl"), AUGMENT.task)


def predicted(form: str) -> Reader:
    """Texts for `predict`."""

    def make(folder: Path) -> None:
        if form == "txt":
            (folder / "train.txt").write_text("\n".join(SENTENCES))
        else:
            _write_task(folder, form)

    def read(folder: Path) -> None:
        config = PredictConfig("model", input=str(folder / f"train.{form}"))
        with predict.opened(config.input, form) as source:
            for _ in predict.texts(config, source):
                pass

    return Reader(make, read)


JSON_LINES = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in SENTENCES)
READERS = {
    "tsv": task("tsv"),
    "csv": task("csv"),
    "jsonl": task("jsonl"),
    "glove": vectors("vectors.txt", _vectors_text(False)),
    "glove-gz": vectors("vectors.txt.gz", gzip.compress(_vectors_text(False))),
    "word2vec": vectors("vectors.txt", _vectors_text(True)),
    "word2vec-bin": vectors("vectors.bin", _vectors_binary()),
    "fasttext": vectors("model.bin", _vectors_fasttext()),
    "corpus-txt": corpus("c.txt", TEXT),
    "corpus-jsonl": corpus("c.jsonl", JSON_LINES),
    "corpus-gz": corpus("c.txt.gz", gzip.compress(TEXT)),
    "corpus-bz2": corpus("c.jsonl.bz2", bz2.compress(JSON_LINES)),
    "corpus-xz": corpus("c.txt.xz", lzma.compress(TEXT)),
    "corpus-zst": corpus("c.txt.zst", zstd.compress(TEXT)),
    "corpus-parquet": corpus("c.parquet"),
    "corpus-saved": corpus("saved"),
    "corpus-wikipedia": corpus("c.xml", PAGES),
    "manifest": Reader(_make_shards, _read_shards, "*.json", _seal_manifest),
    "shard": Reader(_make_shards, _read_shards, "*.tar", _seal_manifest),
    "recipe": Reader(lambda folder: (folder / "recipe.yaml").write_bytes(RECIPE), _read_recipe),
    "model": Reader(_make_model, _read_model),
    "checkpoint": Reader(
        _make_checkpoints,
        _read_checkpoints,
        "*.*",
        lambda folder: [_seal_checkpoint(path) for path in folder.iterdir()] and None,
    ),
    "outputs": Reader(_make_outputs, _read_outputs, "*.*", _seal_outputs),
    "augmented": Reader(_make_augmented, _read_augmented),
    "predict-txt": predicted("txt"),
    "predict-tsv": predicted("tsv"),
    "predict-csv": predicted("csv"),
    "predict-jsonl": predicted("jsonl"),
}


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
