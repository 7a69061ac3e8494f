"""The order of a corpus: which rows a step takes, as a pure function of (seed, epoch, step).

The epoch's blocks are permuted and laid end to end; that line of rows is cut into a fixed number
of virtual streams. Rank r of W serves the streams v with v % W == r, each giving the same number
of rows to every step, so a global step takes the same rows whatever W is, and a position is one
integer. Rows are shuffled within windows of a stream, which bounds what a rank holds in memory.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from data_pipeline.shards import Rows, concatenate, read_block, read_manifest

STREAMS = 16
WINDOW_ROWS = 2048


class CorpusOrder:
    """The arithmetic of the order, without any reading.

    Args:
        block_rows: Rows of each block, in manifest order.
        batch_size: Rows of a global step; a multiple of the number of streams.
        seed: Seed of the permutations.
    """

    def __init__(self, block_rows: list[int], batch_size: int, seed: int):
        self.block_rows = np.asarray(block_rows)
        self.seed = seed
        self.streams = STREAMS if batch_size % STREAMS == 0 else np.gcd(batch_size, STREAMS).item()
        self.rows_per_stream = int(self.block_rows.sum()) // self.streams
        self.rows_per_step = batch_size // self.streams
        self.steps_per_epoch = self.rows_per_stream // self.rows_per_step

    def blocks(self, epoch: int) -> np.ndarray:
        """The epoch's permutation of the blocks."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.block_rows))

    def window(self, epoch: int, stream: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Block and row-in-block of every row of one window of a stream, in serving order."""
        first = number * WINDOW_ROWS
        last = min(first + WINDOW_ROWS, self.rows_per_stream)
        rng = np.random.default_rng([self.seed, epoch, stream, number])
        positions = stream * self.rows_per_stream + first + rng.permutation(last - first)
        blocks = self.blocks(epoch)
        ends = np.cumsum(self.block_rows[blocks])
        which = np.searchsorted(ends, positions, side="right")
        begins = ends[which] - self.block_rows[blocks[which]]
        return blocks[which], positions - begins


class CorpusReader:
    """Reads the rows of a step for one rank.

    Raises ValueError where the batch can't be shared out or the corpus is smaller than a batch.
    """

    def __init__(self, folder: str, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.order = CorpusOrder([b.rows for b in self.manifest.blocks], batch_size, seed)
        if self.order.streams % world:
            raise ValueError(
                f"batch_size {batch_size} gives {self.order.streams} streams, which {world} "
                f"processes can't share equally; make it a multiple of {STREAMS}"
            )
        if not self.order.steps_per_epoch:
            raise ValueError(
                f"batch_size {batch_size} is more than the {self.manifest.rows} rows of {folder}"
            )
        self.mine = range(rank, self.order.streams, world)
        self._windows: dict[int, tuple[tuple[int, int], Rows]] = {}

    @cached_property
    def steps_per_epoch(self) -> int:
        """Global steps of one epoch; the rows that fill no whole step are left for another."""
        return self.order.steps_per_epoch

    def step(self, number: int) -> Rows:
        """This rank's rows of global step `number`, counted from the first epoch's start."""
        epoch, step = divmod(number, self.steps_per_epoch)
        return concatenate([self._stream_rows(epoch, step, stream) for stream in self.mine])

    def _stream_rows(self, epoch: int, step: int, stream: int) -> Rows:
        size = self.order.rows_per_step
        parts, first, last = [], step * size, (step + 1) * size
        while first < last:
            number, offset = divmod(first, WINDOW_ROWS)
            taken = min(last - first, WINDOW_ROWS - offset)
            window = self._window(epoch, stream, number)
            parts.append(window.take(np.arange(offset, offset + taken)))
            first += taken
        return concatenate(parts)

    def _window(self, epoch: int, stream: int, number: int) -> Rows:
        """One window of a stream, read once and kept until the stream moves on."""
        key = (epoch, number)
        if stream not in self._windows or self._windows[stream][0] != key:
            blocks, rows = self.order.window(epoch, stream, number)
            used, inverse = np.unique(blocks, return_inverse=True)
            read = [read_block(self.folder, self.manifest.blocks[b], self.manifest) for b in used]
            starts = np.cumsum([0, *map(len, read)])[inverse]
            self._windows[stream] = (key, concatenate(read).take(starts + rows))
        return self._windows[stream][1]
