"""The order of a corpus: which rows a step takes, as a pure function of (seed, epoch, step).

The epoch's blocks are permuted and laid end to end; that line of rows is cut into equal virtual
streams, whose number the batch size alone decides. Every stream gives the same number of rows to
every step, and rank r of W serves the streams v with v % W == r: a global step takes the same rows
whatever W is, and a position is one integer. Rows are shuffled within windows of a stream, which
bounds what a rank holds in memory. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

MOST_STREAMS = 1024
WINDOW_ROWS = 32_768  # of all streams together, unless a stream's part would be below LEAST
LEAST = 512  # rows of a stream's window: several blocks, as one that spans two windows is read twice
BLOCKS, ROWS, STEPS = 1, 2, 3  # what a permutation shuffles


def stream_count(batch_size: int) -> int:
    """Virtual streams of a batch: its greatest divisor up to 1024, so that most rank counts fit."""
    return max(count for count in range(1, min(batch_size, MOST_STREAMS) + 1) if batch_size % count == 0)


class CorpusOrder:
    """The arithmetic of one corpus's order.

    Args:
        block_rows: Rows of each block, in manifest order, for each variant of the corpus; epochs
            take the variants in turn.
        streams: Virtual streams.
        rows_per_step: Rows that a stream gives to each step.
        seed: Seed of the permutations: a number, or several.
    """

    def __init__(
        self,
        block_rows: Sequence[Sequence[int]],
        streams: int,
        rows_per_step: int,
        seed: int | Sequence[int],
    ):
        self.variants = [np.asarray(rows, dtype=np.int64) for rows in block_rows]
        self.seed = [seed] if isinstance(seed, int) else list(seed)
        self.streams = streams
        self.rows_per_step = rows_per_step
        self.rows_per_stream = min(int(rows.sum()) for rows in self.variants) // streams
        self.steps_per_epoch = self.rows_per_stream // rows_per_step
        wanted = max(LEAST, WINDOW_ROWS // streams)
        self.window_steps = max(1, wanted // rows_per_step)
        self._blocks = lru_cache(maxsize=2)(self._permuted)

    def _permuted(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.variants[epoch % len(self.variants)]
        blocks = self._rng(BLOCKS, epoch).permutation(len(rows))
        return blocks, np.cumsum(rows[blocks])

    def _rng(self, purpose: int, *numbers: int) -> np.random.Generator:
        # NumPy gives [s] and [s, 0] the same state, so each purpose has a number of its own.
        return np.random.default_rng([*self.seed, purpose, *numbers])

    def blocks(self, epoch: int) -> np.ndarray:
        """The epoch's permutation of its variant's blocks."""
        return self._blocks(epoch)[0]

    def steps(self, window: int) -> int:
        """Steps of an epoch's window: the last may have fewer."""
        return min(self.window_steps, self.steps_per_epoch - window * self.window_steps)

    def window(
        self, epoch: int, window: int, streams: Sequence[int] | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Block (of the variant) and row in it, each (streams, steps * rows_per_step), in serving order."""
        first = window * self.window_steps * self.rows_per_step
        count = self.steps(window) * self.rows_per_step
        positions = np.stack(
            [
                stream * self.rows_per_stream
                + first
                + self._rng(ROWS, epoch, window, int(stream)).permutation(count)
                for stream in streams
            ]
        )
        blocks, ends = self._blocks(epoch)
        which = np.searchsorted(ends, positions, side="right")
        rows = self.variants[epoch % len(self.variants)]
        return blocks[which], positions - (ends[which] - rows[blocks[which]])

    def step_order(self, epoch: int, window: int) -> np.ndarray:
        """A permutation of a window's steps, one for all streams, for rows that are sorted by length."""
        return self._rng(STEPS, epoch, window).permutation(self.steps(window))
