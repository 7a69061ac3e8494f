"""Job `pregenerate`: a corpus becomes shards of training rows, once, for every later run.

The corpus is cut into pieces (data_pipeline/corpus.py); each is tokenised, packed and shuffled by
itself with a generator of its own and becomes a shard file. Processes, and slices on other nodes,
share the pieces: the bytes depend on the settings alone. A piece that is done has a record beside
the shards, so that a run that was killed redoes only the others; the manifest is written when every
piece has its record.
"""

from __future__ import annotations

import importlib.util
import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.corpus import SLACK, CorpusPiece, check_corpus, corpus_pieces
from data_pipeline.packing import Document, pack
from data_pipeline.progress import Progress
from data_pipeline.settings import PackingConfig, PregenerateConfig, usable_cores
from data_pipeline.shards import (
    VERSION,
    Block,
    Manifest,
    file_sha256,
    ids_dtype,
    write_manifest,
    write_shard,
)
from data_pipeline.signals import signals_held
from data_pipeline.tokenising import SentenceTokenizer
from data_pipeline.urls import is_url
from data_pipeline.vocabulary import load_vocabulary
from data_pipeline.whole import beside, write_whole

BATCH_CHARACTERS = 1 << 18  # texts of some languages have sentences as long as documents
MOST_TOKENS = 2**16 - 1  # of a row: a block may hold its counts and lengths in two bytes
MOST_ROWS = 4096  # of a block: training reads it whole for the few rows of it that it needs
RECORDS = "pieces"
MB = 1_000_000


def check(config: PregenerateConfig) -> None:
    """Refuse what can't work before anything is written. Raises ValueError."""
    if not config.tokenizer:
        raise ValueError("tokenizer: none given; set --tokenizer to the teacher's folder")
    load_vocabulary(config.tokenizer)
    _ = config.share
    _check_packing(config.packing)
    if not 1 <= config.rows_per_block <= MOST_ROWS:
        raise ValueError(f"rows_per_block: {config.rows_per_block}; give 1 to {MOST_ROWS}")
    if not 1e-4 <= config.shard_mb <= 1e4:
        raise ValueError(f"shard_mb: {config.shard_mb}; give 0.0001 to 10000")
    if config.shards and is_url(config.shards):  # as a path it would be a folder here
        raise ValueError(f"shards: {config.shards}; give a folder, and copy it to the URL when it is whole")
    if config.variants < 1 or config.workers < 0:
        raise ValueError("variants must be 1 or more, workers 0 or more")
    check_corpus(config.corpus, least=2 if config.packing.method == "pairs" else 1)


def _check_packing(packing: PackingConfig) -> None:
    if not 8 <= packing.max_length <= MOST_TOKENS:
        raise ValueError(f"packing.max_length: {packing.max_length}; give 8 to {MOST_TOKENS}")
    if packing.masking.most < 0:
        raise ValueError(f"packing.masking.most: {packing.masking.most}; give 0 or more")
    for name, value in (
        ("short_probability", packing.short_probability),
        ("masking.probability", packing.masking.probability),
    ):
        if not 0 <= value <= 1:
            raise ValueError(f"packing.{name}: {value} is no probability; give 0 to 1")
    if packing.masking.unit == "chinese_word" and importlib.util.find_spec("jieba") is None:
        raise ValueError(
            "packing.masking.unit: chinese_word needs the package jieba: pip install -e '.[chinese]' in "
            "Distillery's folder"
        )


def run(config: PregenerateConfig, folder: Path) -> dict[str, Any]:
    """Write this slice's shards, and the manifest if it is the last; returns counts for the summary."""
    shards = Path(config.shards) if config.shards else folder / "shards"
    (shards / RECORDS).mkdir(parents=True, exist_ok=True)
    pieces = corpus_pieces(config.corpus, int(config.shard_mb * MB))
    _refuse_other_settings(config, pieces, shards)
    first, count = config.share
    mine = range(first - 1, len(pieces), count)
    started = time.monotonic()
    _make(config, pieces, [number for number in mine if not _record_path(shards, number).is_file()], shards)
    seconds = time.monotonic() - started
    paths = [_record_path(shards, number) for number in range(len(pieces))]
    done = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    counts = {
        "slice": config.slice,
        "pieces": len(mine),
        "text_mb": round(sum(pieces[number].size for number in mine) / MB, 3),
        "making_s": round(seconds, 2),
    }
    if len(done) < len(pieces):
        return {**counts, "missing_pieces": len(pieces) - len(done)}
    manifest = _manifest(config, done)
    if not manifest.rows:
        raise ValueError("corpus: no row came out of it; does the tokenizer fit its language?")
    write_manifest(shards, manifest)
    # Left by killed processes. Not the manifest's: another slice may be about to rename its own.
    for left in chain(shards.glob("shard-*.partial"), (shards / RECORDS).glob("[0-9]*.partial")):
        left.unlink(missing_ok=True)
    totals = {"sequences": manifest.rows, "tokens": manifest.tokens, "documents": manifest.documents}
    return {**counts, **totals}


def _refuse_other_settings(config: PregenerateConfig, pieces: list[CorpusPiece], shards: Path) -> None:
    """Refuse to mix shards of other settings, or of a corpus that has changed. Raises ValueError."""
    identity = {
        "version": VERSION,
        "vocabulary": load_vocabulary(config.tokenizer).fingerprint,
        "packing": asdict(config.packing),
        "variants": config.variants,
        "rows_per_block": config.rows_per_block,
        "shard_mb": config.shard_mb,
        "seed": config.seed,
        "corpus": asdict(config.corpus),
        "pieces": [[list(part) for _, part in piece.parts] for piece in pieces],
    }
    text = json.dumps(identity, sort_keys=True) + "\n"
    path = shards / RECORDS / "settings.json"
    if not path.is_file():
        partial = beside(path)
        partial.write_text(text, encoding="utf-8")
        try:
            os.link(partial, path)
            partial.unlink()
        except FileExistsError:  # another slice was first: its settings count
            partial.unlink()
        except OSError:  # a file system without links
            os.replace(partial, path)
    if path.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"shards: {shards} was begun with other settings, or the corpus has changed since; "
            "give another folder, or remove that one"
        )


# ---------------------------------------------------------------------------- sharing the pieces out


def _make(config: PregenerateConfig, pieces: list[CorpusPiece], todo: list[int], shards: Path) -> None:
    """Make the pieces `todo`, in this process or over several, with a progress bar."""
    workers = min(config.workers or usable_cores(), len(todo))
    with _progress(pieces, todo) as done:
        if workers <= 1:
            maker = _Maker(config, shards, done)
            for number in todo:
                maker(number, pieces[number])
            return
        # Set for a training's large tensors (launcher/local.py), these would only let the workers grow.
        for name in [name for name in os.environ if name.startswith("MALLOC_")]:
            del os.environ[name]
        # Spawned, not forked: the tokenizer's threads don't survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, _begin_worker, (config, shards, done)) as pool:
            try:
                # Workers never get them, not even while they are starting.
                with signals_held(signal.SIGINT, signal.SIGUSR1):
                    futures = [pool.submit(_work, number, pieces[number]) for number in todo]
                for future in as_completed(futures):
                    future.result()
            except BrokenProcessPool:
                raise ValueError(
                    "pregenerate: a worker was killed, perhaps for want of memory; continue with "
                    "--resume, and with fewer --workers in a new --run if it happens again"
                ) from None
            except BaseException:
                for worker in multiprocessing.active_children():  # else they finish their pieces first
                    worker.terminate()
                raise


@contextmanager
def _progress(pieces: list[CorpusPiece], todo: list[int]) -> Iterator[Any]:
    """Progress over the corpus's bytes; yields the counters that move it: bytes done, by piece.

    Without a lock, which a worker that is killed could take with it: each number has one writer.
    """
    done = multiprocessing.get_context("spawn").RawArray("q", len(pieces))
    total = sum(pieces[number].size for number in todo)
    ended = threading.Event()
    with Progress("pregenerate", math.ceil(total / MB), unit="MB") as progress:
        thread = threading.Thread(target=_watch, args=(progress, done, ended), daemon=True)
        thread.start()
        try:
            yield done
        finally:
            ended.set()
            thread.join()
            progress.reach(math.ceil(sum(done) / MB))


def _watch(progress: Progress, done: Any, ended: threading.Event) -> None:
    """Move the progress as the counters move."""
    started = time.monotonic()
    while not ended.wait(0.5):
        speed = sum(done) / MB / (time.monotonic() - started)
        progress.describe(f"{speed:.1f} MB/s", {"mb_per_s": round(speed, 2)})
        progress.reach(math.ceil(sum(done) / MB))


_maker: _Maker


def _begin_worker(config: PregenerateConfig, shards: Path, done: Any) -> None:
    global _maker
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _maker = _Maker(config, shards, done)


def _end_after(parent: multiprocessing.process.BaseProcess) -> None:
    """End this process when its parent has been killed."""
    parent.join()
    os._exit(1)


def _work(number: int, piece: CorpusPiece) -> None:
    _maker(number, piece)


# ------------------------------------------------------------------------------------- making a piece


class _Maker:
    """Makes shards of pieces; the tokeniser keeps the words of one piece for the next."""

    def __init__(self, config: PregenerateConfig, shards: Path, done: Any):
        self.config, self.shards, self.done = config, shards, done
        self.vocabulary = load_vocabulary(config.tokenizer)
        masking = config.packing.masking
        self.tokenise = SentenceTokenizer(self.vocabulary, masking.unit if masking.active else "token")

    def __call__(self, number: int, piece: CorpusPiece) -> None:
        """Write the shards of piece `number`, then its record."""
        blocks: list[Block] = []
        tokens = documents = 0
        for part, window in enumerate(self._windows(number, piece)):
            documents += len(window)
            for variant in range(self.config.variants):
                rng = np.random.default_rng([self.config.seed, variant, number, part])
                rows = list(pack(window, self.config.packing, self.vocabulary, rng))
                order = rng.permutation(len(rows))
                size = self.config.rows_per_block
                cut = ([rows[i] for i in order[at : at + size]] for at in range(0, len(rows), size))
                name = f"shard-{variant:02d}-{number:06d}-{part:03d}.tar"
                dtype = ids_dtype(self.vocabulary.size)
                if rows:
                    blocks += write_shard(self.shards / name, cut, dtype, variant)
                tokens += sum(len(row.ids) for row in rows)
        record = {
            "documents": documents,
            "tokens": tokens,
            "checksums": {name: file_sha256(self.shards / name) for name in {b.shard for b in blocks}},
            "blocks": [list(asdict(block).values()) for block in blocks],
        }
        write_whole(_record_path(self.shards, number), json.dumps(record, sort_keys=True))

    def _windows(self, number: int, piece: CorpusPiece) -> Iterator[list[Document]]:
        """The piece's documents, tokenised, a shard's worth at a time."""
        window: list[Document] = []
        size = 0
        for document, length in self._tokenised(number, piece):
            window.append(document)
            size += length
            if size >= self.config.shard_mb * MB * SLACK:
                yield window
                window, size = [], 0
        if window:
            yield window

    def _tokenised(self, number: int, piece: CorpusPiece) -> Iterator[tuple[Document, int]]:
        """Yield each document's token ids and characters; sentences are tokenised many at once."""
        batch: list[list[str]] = []
        size = 0
        for document in piece.documents():
            batch.append(document)
            size += sum(map(len, document))
            if size >= BATCH_CHARACTERS:
                yield from self._ids(batch)
                batch, size = [], 0
                self.done[number] = piece.done
        yield from self._ids(batch)
        self.done[number] = piece.done

    def _ids(self, batch: list[list[str]]) -> Iterator[tuple[Document, int]]:
        ids = iter(self.tokenise([sentence for document in batch for sentence in document]))
        for document in batch:
            if kept := [sentence for sentence in islice(ids, len(document)) if sentence]:
                yield kept, sum(map(len, document))


def _record_path(shards: Path, number: int) -> Path:
    return shards / RECORDS / f"{number:06d}.json"


def _manifest(config: PregenerateConfig, records: list[dict[str, Any]]) -> Manifest:
    vocabulary = load_vocabulary(config.tokenizer)
    blocks = [Block(*entry) for record in records for entry in record["blocks"]]
    return Manifest(
        version=VERSION,
        vocabulary=vocabulary.fingerprint,
        vocabulary_size=vocabulary.size,
        pad=vocabulary.pad,
        max_length=config.packing.max_length,
        packing=asdict(config.packing),
        seed=config.seed,
        variants=config.variants,
        rows=sum(block.rows for block in blocks),
        tokens=sum(record["tokens"] for record in records),
        documents=sum(record["documents"] for record in records),
        checksums={name: value for record in records for name, value in record["checksums"].items()},
        blocks=blocks,
    )
