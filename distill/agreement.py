"""What all ranks must agree on: the rows that they take between them in a step, and the weights.

Ranks that have fallen apart raise no error by themselves, and the sum of what they find is still a number.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from distill.encoders import Batch
from distill.engine import from_rank_0, rank, sum_over_ranks, world_size

MIX = -7046029254386353131  # an odd number of 64 bits, 2^64 over the golden ratio
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by a weight's size in bytes
ROUNDING = 1e-3  # of the weights' norm: as far apart as different processors' rounding takes them


@lru_cache(maxsize=64)
def _factors(width: int, device: torch.device) -> Tensor:
    return (2 * torch.arange(width, device=device) + 1) ** 3 * MIX


def digest(batch: Batch) -> Tensor:
    """A hash of the rows of a batch, float64 (): below 2^31 a row, so that sums of many are exact.

    Digests add up to the same whatever the order of the rows, their padding, and the batches they come in.
    """
    rows = (batch.ids * batch.mask * _factors(batch.ids.shape[1], batch.ids.device)).sum(dim=1)
    return ((rows * MIX) >> 33).bitwise_and(2**31 - 1).sum().double()


def rows_apart(steps: list[int], batch_size: int, rows: float, sum_of_steps: float) -> str:
    """What is wrong with what the ranks took in these steps, in words; empty for nothing.

    `rows` is the sum of all ranks' rows, `sum_of_steps` that of the step numbers each of them took.
    """
    if (rows, sum_of_steps) == (len(steps) * batch_size, sum(steps) * world_size()):
        return ""
    return (
        f"in steps {steps[0] + 1} to {steps[-1] + 1} the ranks took {rows:.0f} rows together instead of "
        f"{len(steps)} times {batch_size}, or other steps; give every rank the same run and shards"
    )


@torch.no_grad()
def weights_digest(module: nn.Module) -> Tensor:
    """A hash of the bits of a module's weights, int64 ()."""
    bits = (weight.view(BITS[weight.element_size()]) for weight in module.parameters())
    every = torch.stack([part.sum(dtype=torch.int64) for part in bits])
    return (every * _factors(len(every), every.device)).sum()


@torch.no_grad()
def weights_apart(module: nn.Module) -> list[float]:
    """How far each rank's weights are from rank 0's, relative to their norm. Every rank calls.

    Empty where all have the same bits, which costs one sum over the weights.
    """
    own = weights_digest(module)
    digests = own.new_zeros(world_size())
    digests[rank()] = own
    if bool((sum_over_ranks(digests) == digests[0]).all()):
        return []
    apart = size = 0.0
    for weight in module.parameters():
        theirs = from_rank_0(weight.detach().clone()).double()
        apart += float((weight - theirs).square().sum())
        size += float(theirs.square().sum())
    shares = own.new_zeros(world_size(), dtype=torch.float64)
    shares[rank()] = (apart / size) ** 0.5 if size else float("inf")
    return sum_over_ranks(shares).tolist()
