"""Rows of shard folders by the step: read ahead, of like lengths in a step, from corpora mixed by weight.

What a step holds is arithmetic (data_pipeline/order.py); this reads it. The next window of every
stream is fetched by threads while the one at hand is served, so a slow store delays no step until
the window is used up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from data_pipeline.order import MOST_STREAMS, CorpusOrder, stream_count
from data_pipeline.settings import StreamConfig
from data_pipeline.shards import Rows, concatenate
from data_pipeline.store import DamagedBlock, ShardFolder

CHUNK_ROWS = 2048


@dataclass(frozen=True)
class Damage:
    """A block that could not be read: the message names shard and offset."""

    message: str
    rows: int


@dataclass
class CorpusReader:
    """Reads the rows of a step for one rank.

    Args:
        shards: A shard folder or its URL, or several with weights. A corpus gets a share of the
            streams in proportion to its weight, so every step holds the same numbers of rows of each.
        batch_size: Rows of a global step.
        seed: Seed of the order.
        rank: This process.
        world: Number of processes; must divide the streams.
        by_length: Give rows of like lengths to the same step, on every rank.
        config: How to read.
        on_damage: Called once for every block that `skip` passes over.

    Raises ValueError where the batch can't be shared out, a corpus is smaller than its share of a
    batch, or the corpora were tokenised differently.
    """

    shards: str | Mapping[str, float]
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1
    by_length: bool = True
    config: StreamConfig = field(default_factory=StreamConfig)
    on_damage: Callable[[Damage], None] | None = None

    def __post_init__(self) -> None:
        weights = {self.shards: 1.0} if isinstance(self.shards, str) else dict(self.shards)
        if not weights:
            raise ValueError("shards: none given; set --shards to the shards/ folder of a pregenerate run")
        streams = stream_count(self.batch_size)
        if streams % self.world:
            raise ValueError(
                f"batch_size: {self.batch_size} rows come from {streams} streams, which {self.world} "
                f"processes can't share equally; give another batch (any multiple of {self.world} up to "
                f"{MOST_STREAMS} can be shared), or another number of processes"
            )
        folders = [ShardFolder(folder, self.config.store) for folder in weights]
        _check_alike(folders)
        self.pad = folders[0].manifest.pad
        self.max_length = max(folder.manifest.max_length for folder in folders)
        self.threads = ThreadPoolExecutor(max(1, self.config.workers), "shards")
        self.corpora: list[_Corpus] = []
        begin = 0
        for number, (folder, count) in enumerate(
            zip(folders, apportion(list(weights.values()), streams), strict=True)
        ):
            mine = [v - begin for v in range(begin, begin + count) if v % self.world == self.rank]
            rows_per_step = self.batch_size // streams
            self.corpora.append(_Corpus(self, folder, number, count, rows_per_step, mine))
            begin += count
        rows = sum(corpus.order.rows_per_stream * corpus.order.streams for corpus in self.corpora)
        self.identity = {folder.folder: folder.identity for folder in folders}
        self.steps_per_epoch = rows // self.batch_size

    def step(self, number: int) -> Rows:
        """This rank's rows of global step `number`, counted from the first epoch's start; ids int64.

        An epoch has `steps_per_epoch` steps: of one corpus, every row but those that fill no whole
        step (others in each epoch); of several, as many rows as they hold together.
        """
        parts = [corpus.step(number) for corpus in self.corpora if corpus.mine]
        if len(self.corpora) == 1:
            return parts[0]
        return concatenate([_padded(part, self) for part in parts])  # as wide on every rank

    def close(self) -> None:
        """Stop reading ahead."""
        self.threads.shutdown(wait=False, cancel_futures=True)


class _Corpus:
    """One corpus of a reader: its streams' windows, read and read ahead."""

    def __init__(
        self,
        reader: CorpusReader,
        folder: ShardFolder,
        number: int,
        streams: int,
        rows_per_step: int,
        mine: list[int],
    ):
        self.reader, self.folder, self.mine = reader, folder, mine
        blocks = folder.manifest.blocks
        self.variants = [
            [n for n, block in enumerate(blocks) if block.variant == variant]
            for variant in range(folder.manifest.variants)
        ]
        rows = [[blocks[n].rows for n in numbers] for numbers in self.variants]
        self.order = CorpusOrder(rows, streams, rows_per_step, [reader.seed, number])
        if not self.order.steps_per_epoch:
            raise ValueError(
                f"batch_size: a step takes {streams * rows_per_step} rows of {folder.folder}, which "
                f"has {min(map(sum, rows))}; give a smaller batch or a larger corpus"
            )
        self._key: tuple[int, int] | None = None
        self._window: Rows | None = None
        self._chunk: Rows | None = None  # some steps of the window, ids as int64
        self._chunk_steps = range(0)
        self.ahead: tuple[tuple[int, int], Future[Rows]] | None = None  # (epoch, window) and its rows
        self._damaged: set[int] = set()

    def step(self, number: int) -> Rows:
        epoch, step = divmod(number, self.order.steps_per_epoch)
        window, place = divmod(step, self.order.window_steps)
        if self._key != (epoch, window):
            self._window = self._turn_to(epoch, window)
            self._key, self._chunk_steps = (epoch, window), range(0)
        size = len(self.mine) * self.order.rows_per_step
        if place not in self._chunk_steps:
            self._cut_chunk(place, size)
        assert self._chunk is not None
        begin = (place - self._chunk_steps.start) * size
        return self._chunk.slice(begin, begin + size)

    def _cut_chunk(self, place: int, size: int) -> None:
        """Turn the ids of some steps from `place` on into int64 together: step by step takes longer."""
        assert self._window is not None
        steps = max(1, CHUNK_ROWS // size)
        chunk = self._window.slice(place * size, (place + steps) * size)
        self._chunk = Rows(chunk.ids.astype(np.int64), chunk.lengths, chunk.boundaries)
        self._chunk_steps = range(place, place + len(chunk) // size)

    def _turn_to(self, epoch: int, window: int) -> Rows:
        """The rows of a window, read ahead if it is the one expected; starts to read the next one."""
        key, ahead = self.ahead or (None, None)
        rows = ahead.result() if ahead and key == (epoch, window) else self._read(epoch, window)
        if self.reader.config.workers:
            is_last = (window + 1) * self.order.window_steps >= self.order.steps_per_epoch
            following = (epoch + 1, 0) if is_last else (epoch, window + 1)
            # A thread of its own: it waits for the pool's threads, and must not occupy one of them.
            future: Future[Rows] = Future()
            threading.Thread(target=_fulfil, args=(future, self._read, *following), daemon=True).start()
            self.ahead = (following, future)
        return rows

    def _read(self, epoch: int, window: int) -> Rows:
        """The rows of a window in serving order, (steps, streams, rows_per_step) laid flat."""
        blocks, rows = self.order.window(epoch, window, self.mine)
        used, inverse = np.unique(blocks, return_inverse=True)
        variant = self.variants[epoch % len(self.variants)]
        read = self._blocks([variant[number] for number in used], epoch)
        starts = np.cumsum([0, *map(len, read)])[:-1]
        everything = concatenate(read)
        index = starts[inverse.reshape(blocks.shape)] + rows
        if self.reader.by_length:  # by stream: then the k-th step has every stream's k-th shortest rows
            index = np.take_along_axis(
                index, np.argsort(everything.lengths[index], axis=1, kind="stable"), axis=1
            )
        steps = self.order.steps(window)
        index = index.reshape(len(self.mine), steps, -1).transpose(1, 0, 2)
        if self.reader.by_length:  # steps in random order, or lengths would grow through a window
            index = index[self.order.step_order(epoch, window)]
        return everything.take(index.reshape(-1))

    def _blocks(self, numbers: list[int], epoch: int) -> list[Rows]:
        """Blocks of the manifest by number, read by the pool's threads where that pays."""
        if self.folder.is_local or not self.reader.config.workers:
            return [self._block(number, epoch) for number in numbers]
        return list(self.reader.threads.map(lambda number: self._block(number, epoch), numbers))

    def _block(self, number: int, epoch: int) -> Rows:
        if number not in self._damaged:
            try:
                return self.folder.block(number)
            except DamagedBlock as error:
                if self.reader.config.damaged == "fail":
                    raise
                self._report(number, str(error))
        return self._replacement(number, epoch)

    def _replacement(self, number: int, epoch: int) -> Rows:
        """Rows of the block that follows a damaged one in the epoch's order, as many as it had.

        Which block that is depends on the epoch alone, so every rank and every resume takes the same.
        """
        rows = self.folder.manifest.blocks[number].rows
        variant = self.variants[epoch % len(self.variants)]
        line = [variant[place] for place in self.order.blocks(epoch)]
        at = line.index(number)
        for other in line[at + 1 :] + line[:at]:
            if other in self._damaged:
                continue
            try:
                whole = self.folder.block(other)
            except DamagedBlock as error:
                self._report(other, str(error))
                continue
            return whole.take(np.arange(rows) % len(whole))
        raise ValueError(f"shards: no block of {self.folder.folder} is whole; run pregenerate again")

    def _report(self, number: int, message: str) -> None:
        if number not in self._damaged and self.reader.on_damage:
            self.reader.on_damage(Damage(message, self.folder.manifest.blocks[number].rows))
        self._damaged.add(number)


def _fulfil(future: Future[Rows], read: Callable[[int, int], Rows], epoch: int, window: int) -> None:
    try:
        future.set_result(read(epoch, window))
    except BaseException as error:  # raised where the result is asked for
        future.set_exception(error)


def apportion(weights: list[float], streams: int) -> list[int]:
    """Shares of `streams` in proportion to the weights, by largest remainder.

    Raises ValueError where a weight is not above 0 or too small for one stream.
    """
    total = sum(weights)
    if not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"shards: weights {weights}; give numbers above 0")
    exact = [weight / total * streams for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda n: (shares[n] - exact[n], n))
    for number in by_remainder[: streams - sum(shares)]:
        shares[number] += 1
    if 0 in shares:
        raise ValueError(
            f"shards: a batch of {streams} rows has none for the weight {weights[shares.index(0)]}; "
            "give a larger batch or weight"
        )
    return shares


def _check_alike(folders: list[ShardFolder]) -> None:
    for folder in folders[1:]:
        if folder.manifest.vocabulary != folders[0].manifest.vocabulary:
            raise ValueError(
                f"shards: {folder.folder} was made with another vocabulary than {folders[0].folder}; "
                "run pregenerate with the same --tokenizer"
            )


def _padded(rows: Rows, reader: CorpusReader) -> Rows:
    """Rows padded to the width of the widest corpus."""
    missing = reader.max_length - rows.ids.shape[1]
    ids = np.pad(rows.ids, ((0, 0), (0, missing)), constant_values=reader.pad) if missing else rows.ids
    return Rows(ids, rows.lengths, rows.boundaries)
