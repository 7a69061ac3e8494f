"""Job `pregenerate`: a corpus becomes shards of training rows, once, for every later run.

Documents stream through in windows of some million tokens; each window is packed and shuffled
with a generator of its own, so memory stays bounded and the bytes depend on the seed alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import Progress

from data_pipeline.corpus import CorpusConfig, check_corpus, corpus_files, read_documents
from data_pipeline.packing import Document, PackingConfig, Row, pack
from data_pipeline.shards import VERSION, Manifest, ShardWriter, write_manifest
from data_pipeline.vocabulary import Vocabulary, load_vocabulary

WINDOW_TOKENS = 1_000_000
BATCH_DOCUMENTS = 500
LARGEST = 2**16 - 1  # a block may hold its counts and lengths in two bytes


@dataclass
class PregenerateConfig:
    """Settings of `distillery pregenerate`.

    Args:
        corpus: The text.
        tokenizer: Folder whose tokenizer is used: the teacher's.
        packing: How sentences become rows.
        rows_per_block: Sequences in one tar member.
        blocks_per_shard: Tar members in one shard file.
        seed: Seed of every draw.
    """

    corpus: CorpusConfig
    tokenizer: str
    packing: PackingConfig = field(default_factory=PackingConfig)
    rows_per_block: int = 256
    blocks_per_shard: int = 64
    seed: int = 0


def check(config: PregenerateConfig) -> None:
    """Refuse what can't work before anything is written. Raises ValueError."""
    load_vocabulary(config.tokenizer)
    packing = config.packing
    if not 8 <= packing.max_length <= LARGEST:
        raise ValueError(f"packing.max_length: {packing.max_length}; give 8 to {LARGEST}")
    if packing.masking.most < 0:
        raise ValueError(f"packing.masking.most: {packing.masking.most}; give 0 or more")
    for name, value in (
        ("short_probability", packing.short_probability),
        ("masking.probability", packing.masking.probability),
    ):
        if not 0 <= value <= 1:
            raise ValueError(f"packing.{name}: {value} is no probability; give 0 to 1")
    if not 1 <= config.rows_per_block <= LARGEST:
        raise ValueError(f"rows_per_block: {config.rows_per_block}; give 1 to {LARGEST}")
    if config.blocks_per_shard < 1:
        raise ValueError(f"blocks_per_shard: {config.blocks_per_shard}; give 1 or more")
    check_corpus(config.corpus, least=2 if packing.method == "pairs" else 1)


def run(config: PregenerateConfig, folder: Path) -> dict:
    """Write `folder`/shards; returns counts for the summary."""
    vocabulary = load_vocabulary(config.tokenizer)
    partial = folder / "shards.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writer = ShardWriter(partial, vocabulary.size, config.blocks_per_shard)
    counted = _Counter()
    rows: list[Row] = []
    for row in _rows(config, vocabulary, counted):
        rows.append(row)
        if len(rows) == config.rows_per_block:
            writer.write(rows)
            rows = []
    if rows:
        writer.write(rows)
    manifest = Manifest(
        version=VERSION,
        vocabulary=vocabulary.fingerprint,
        vocabulary_size=vocabulary.size,
        pad=vocabulary.pad,
        max_length=config.packing.max_length,
        packing=asdict(config.packing),
        seed=config.seed,
        rows=sum(block.rows for block in writer.blocks),
        tokens=writer.tokens,
        documents=counted.documents,
        checksums=writer.close(),
        blocks=writer.blocks,
    )
    if not manifest.rows:
        raise ValueError("corpus: no row came out of it; does the tokenizer fit its language?")
    write_manifest(partial, manifest)
    shutil.rmtree(folder / "shards", ignore_errors=True)
    os.replace(partial, folder / "shards")
    return {"sequences": manifest.rows, "tokens": manifest.tokens, "documents": manifest.documents}


class _Counter:
    documents = 0


def _rows(config: PregenerateConfig, vocabulary: Vocabulary, counted: _Counter) -> Iterator[Row]:
    total = sum(_size(path) for path in corpus_files(config.corpus))
    with Progress(*Progress.get_default_columns(), "{task.fields[rate]}", transient=True) as bar:
        task = bar.add_task("pregenerate", total=total, rate="")
        for number, (window, size) in enumerate(_windows(config.corpus, vocabulary)):
            rng = np.random.default_rng([config.seed, number])
            rows = list(pack(window, config.packing, vocabulary, rng))
            counted.documents += len(window)
            yield from (rows[i] for i in rng.permutation(len(rows)))
            speed = (bar.tasks[task].speed or 0) / 1e6
            bar.update(task, advance=size, rate=f"{speed:.1f} MB/s")


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def _windows(corpus: CorpusConfig, vocabulary: Vocabulary) -> Iterator[tuple[list[Document], int]]:
    """Yield windows of tokenised documents and the bytes of text that each holds."""
    window: list[Document] = []
    size = tokens = 0
    for document, length in _tokenised(corpus, vocabulary):
        window.append(document)
        size += length
        tokens += sum(map(len, document))
        if tokens >= WINDOW_TOKENS:
            yield window, size
            window, size, tokens = [], 0, 0
    if window:
        yield window, size


def _tokenised(corpus: CorpusConfig, vocabulary: Vocabulary) -> Iterator[tuple[Document, int]]:
    """Yield each document's token ids by sentence and its bytes; the tokenizer runs in batches."""
    batch: list[list[str]] = []

    def flush() -> Iterator[tuple[Document, int]]:
        sentences = [sentence for document in batch for sentence in document]
        encoded = iter(vocabulary.tokenizer.encode_batch(sentences, add_special_tokens=False))
        for document in batch:
            ids = [next(encoded).ids for _ in document]
            kept = [sentence for sentence in ids if sentence]
            if kept:
                yield kept, sum(len(sentence.encode()) for sentence in document)
        batch.clear()

    for document in read_documents(corpus):
        batch.append(document)
        if len(batch) == BATCH_DOCUMENTS:
            yield from flush()
    yield from flush()
