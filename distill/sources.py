"""Micro-batches as a pure function of the step: from corpus shards, or from a labelled task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from data_pipeline.masking import DynamicMasking
from data_pipeline.shards import Rows
from data_pipeline.stream import CorpusReader
from data_pipeline.tasks import Encoded, bucketed_steps
from distill.encoders import Batch


class CorpusSource:
    """Rows of a shard folder, this rank's share of every global step.

    Args:
        reader: Reads the rank's rows.
        micro_batch_size: Rows of a micro-batch.
        pad_to_longest: Cut a micro-batch to its longest row.
    """

    def __init__(self, reader: CorpusReader, micro_batch_size: int, pad_to_longest: bool = True):
        self.reader = reader
        self.micro = micro_batch_size
        self.pad_to_longest = pad_to_longest
        self.steps_per_epoch = reader.steps_per_epoch
        self.identity = reader.identity

    def micro_batches(self, step: int) -> list[Batch]:
        """Micro-batches of global step `step`."""
        rows = self.reader.step(step)
        starts = range(0, len(rows), self.micro)
        return [self._batch(rows.slice(i, i + self.micro)) for i in starts]

    def _batch(self, rows: Rows) -> Batch:
        width = int(rows.lengths.max()) if self.pad_to_longest else rows.ids.shape[1]
        ids = torch.from_numpy(rows.ids[:, :width])
        if rows.boundaries.min() == width:  # no padding, no second segment
            return Batch(ids, torch.ones_like(ids), torch.zeros_like(ids))
        places = np.arange(width)
        mask = places < rows.lengths[:, None]
        segments = mask & (places >= rows.boundaries[:, None])
        return Batch(
            ids, torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(segments.astype(np.int64))
        )


class MaskedSource:
    """A corpus whose tokens are masked anew in every epoch; labels are the tokens that were masked."""

    def __init__(self, corpus: CorpusSource, masking: DynamicMasking):
        self.corpus = corpus
        self.masking = masking
        self.steps_per_epoch = corpus.steps_per_epoch
        self.identity = corpus.identity

    def micro_batches(self, step: int) -> list[Batch]:
        """Micro-batches of global step `step`."""
        return [self._masked(batch, step) for batch in self.corpus.micro_batches(step)]

    def _masked(self, batch: Batch, step: int) -> Batch:
        ids, places = batch.ids.numpy().copy(), []
        for row, length in enumerate(batch.mask.sum(dim=1).tolist()):
            ids[row, :length], chosen = self.masking(ids[row, :length], step)
            places.append(np.sort(chosen) + row * ids.shape[1])
        masked = torch.from_numpy(np.concatenate(places))
        return replace(batch, ids=torch.from_numpy(ids), masked=masked, labels=batch.ids.flatten()[masked])


@dataclass
class TaskSource:
    """Examples of a task in batches of like lengths, this rank's share of every global step.

    Micro-batches are padded to `width`, or each to its longest example.
    """

    data: Encoded
    batch_size: int
    micro_batch_size: int
    seed: int
    rank: int = 0
    world: int = 1
    width: int | None = None

    def __post_init__(self) -> None:
        self.steps_per_epoch = len(self.data) // self.batch_size
        self.identity = self.data.identity
        self._steps = lru_cache(maxsize=1)(self._epoch_steps)

    def _epoch_steps(self, epoch: int) -> np.ndarray:
        return bucketed_steps(self.data.lengths, self.batch_size, self.seed, epoch)

    def micro_batches(self, step: int) -> list[Batch]:
        """Micro-batches of global step `step`."""
        epoch, number = divmod(step, self.steps_per_epoch)
        # Neighbours have like lengths: dealing them out keeps the ranks' lengths alike.
        mine = self._steps(epoch)[number][self.rank :: self.world]
        size = self.micro_batch_size
        return [task_batch(self.data, mine[i : i + size], self.width) for i in range(0, len(mine), size)]


def task_batch(data: Encoded, index: np.ndarray, width: int | None = None) -> Batch:
    """The examples at `index`, padded to `width`, or to the longest of them."""
    return Batch(
        **{name: torch.from_numpy(part) for name, part in data.padded(index, width).items()},
        labels=torch.from_numpy(data.labels[index]),
        teacher=None if data.teacher is None else torch.from_numpy(data.teacher[index]),
    )
