"""What a trainer's steps add up to: means and speed from line to line of metrics, and votes to stop."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from distill.accounting import Cost
from distill.engine import sum_over_ranks
from distill.objective import Counts


class Window:
    """Means and speed since the last line of metrics; nothing leaves the device before `close`."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.steps: list[int] = []
        self.terms: dict[str, Tensor] = {}
        self.losses: list[Tensor] = []  # this rank's share in each step
        self.sums: Tensor | float = 0.0  # what `Trainer.train_step` sums over all ranks, over the steps

    def add(self, step: int, terms: dict[str, Tensor], sums: Tensor) -> None:
        self.steps.append(step)
        self.sums = self.sums + sums
        self.losses.append(terms["loss"])
        for name, term in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + term

    def rows_and_steps(self) -> tuple[float, float]:
        """Rows of all ranks, and the sum of the step numbers that each of them took."""
        steps, _, counts = self._summed()
        return counts.rows, steps

    def _summed(self) -> tuple[float, float, Counts]:
        """Step numbers, digest of the rows, and counts."""
        assert isinstance(self.sums, Tensor)
        _, steps, digest_of_rows, *counts = self.sums.tolist()
        return steps, digest_of_rows, Counts(*counts)

    def close(self, cost: Cost, ceiling: float) -> dict[str, Any]:
        """Means of the terms, speed, the share of the ceiling that the model's FLOPs take, and a digest of
        the rows, the same for any number of ranks. Where a machine was busy when its ceiling was measured,
        what is reached now is the ceiling.
        """
        names = list(self.terms)
        sums = sum_over_ranks(torch.stack([self.terms[name] for name in names])).tolist()
        _, digest_of_rows, counts = self._summed()
        seconds = time.perf_counter() - self.started
        rate = cost.flops(counts.rows, counts.real_tokens, counts.real_pairs) / seconds
        means = {_label(name): total / len(self.steps) for name, total in zip(names, sums, strict=True)}
        return {
            **means,
            "sequences_per_s": round(counts.rows / seconds, 2),
            "tokens_per_s": round(counts.real_tokens / seconds, 1),
            "tflops_per_s": round(rate / 1e12, 4),
            "mfu": round(rate / max(ceiling, rate), 4),
            "rows_digest": f"{round(digest_of_rows):x}",
        }


class Votes:
    """Whether any rank was asked to stop. A signal reaches ranks at different moments, and some never; all
    stop after the same step, for the votes are summed with what every step sums anyway.
    """

    def __init__(self) -> None:
        self.sum: Tensor | None = None
        self.arrived: torch.cuda.Event | None = None

    def stop(self, votes: Tensor) -> bool:
        """Take this step's sum; returns whether the step before had any vote.

        One step late, so that the CPU need not wait for what it has just queued on a GPU.
        """
        before, arrived = self.sum, self.arrived
        if votes.is_cuda:
            host = torch.empty(votes.shape, dtype=votes.dtype, pin_memory=True)
            self.sum = host.copy_(votes, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()
        else:
            self.sum = votes.clone()
        if arrived is not None:
            arrived.synchronize()
        return before is not None and before.item() > 0


def _label(name: str) -> str:
    return name if name == "loss" else f"loss/{name}"
