"""The readers that the benchmark `fuzz` tries: how each one's good files are written, and read."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import json
import lzma
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline import augment as augmented
from data_pipeline.corpus import corpus_pieces
from data_pipeline.packing import Row
from data_pipeline.readers import zstd
from data_pipeline.settings import AugmentConfig, CorpusConfig, TaskConfig, WordsConfig
from data_pipeline.shards import MANIFEST, VERSION, Manifest, file_sha256, write_manifest, write_shard
from data_pipeline.store import ShardFolder
from data_pipeline.tasks import Examples, encode_split, label_set, read_examples
from data_pipeline.verify import verify
from data_pipeline.vocabulary import load_vocabulary
from data_pipeline.whole import CHECKSUMS, checksum
from data_pipeline.word_vectors import first_vectors, read_vectors
from data_pipeline.words import build_tokenizer, write_vocabulary
from distill import predict
from distill.model_facts import model_config, own_labels, positions
from distill.outputs import Split
from distill.settings import PredictConfig, TeacherConfig
from launcher.settings import job_of, parse

SENTENCES = ["a good film", "not so good", "it was bad , bad", "never mind", "great fun", "dull"]


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
    seal: Callable[[Path], object] | None = None


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
    from safetensors.torch import save_file

    from distill.checkpoints import ENGINE, STATE

    for step in (5, 10):
        path = folder / f"step-{step:08d}"
        path.mkdir()
        state = json.dumps({"step": step, "best": {}, ENGINE: {"updates": step, "scale": {}}})
        save_file({"weight/w": torch.ones(3, 3)}, path / STATE, {"state": state})
        _seal_checkpoint(path)


def _seal_checkpoint(path: Path) -> None:
    record = {file.name: checksum(file) for file in path.glob("*.safetensors")}
    (path / CHECKSUMS).write_text(json.dumps(record))


def _read_checkpoints(folder: Path) -> None:
    from distill.checkpoints import STATE, Checkpoints, read_state

    found = Checkpoints(folder, 2, folder / "metrics.jsonl")
    if (step := found.newest()) < 0:
        raise ValueError(f"every checkpoint in {folder} is damaged")
    read_state(folder / f"step-{step:08d}" / STATE)


EXAMPLES = Examples(SENTENCES, [], [])


def _outputs(folder: Path) -> Split:
    settings, teacher = TaskConfig("train.tsv", "train.tsv"), TeacherConfig(str(folder / "teacher"))
    return Split(folder / "train", EXAMPLES, settings, teacher)


def _make_outputs(folder: Path) -> None:
    (folder / "teacher").mkdir()
    (folder / "teacher" / "config.json").write_text("{}")
    split = _outputs(folder)
    split.begin(["fp32"])
    for begin in (0, 4):
        split.write(begin, np.zeros((min(4, 6 - begin), 2), np.float32))
    split.finish()


def _read_outputs(folder: Path) -> None:
    split = _outputs(folder)
    split.check()
    split.read()
    split.begin(["fp32"])


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
        lambda folder: [_seal_checkpoint(path) for path in folder.iterdir()],
    ),
    "outputs": Reader(_make_outputs, _read_outputs, "*.*", _seal_outputs),
    "augmented": Reader(_make_augmented, _read_augmented),
    "predict-txt": predicted("txt"),
    "predict-tsv": predicted("tsv"),
    "predict-csv": predicted("csv"),
    "predict-jsonl": predicted("jsonl"),
}
