"""Learning-rate schedules: a factor on the rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass
class ScheduleConfig:
    """How the learning rate moves.

    Args:
        name: `constant`, `linear` (down to 0), `cosine` (down to 0), or `cyclic` (triangles
            between a hundredth of the rate and the rate, Smith 2017).
        warmup: Share of all steps over which the rate first rises from 0 (not for `cyclic`).
        cycles: Triangles in the whole run, for `cyclic`.
    """

    name: Literal["constant", "linear", "cosine", "cyclic"] = "linear"
    warmup: float = 0.1
    cycles: int = 1


def factor(config: ScheduleConfig, step: int, total: int) -> float:
    """The rate's factor at `step` of `total`, from 0 to 1. With warm-up, step 0 has rate 0."""
    progress = step / total
    if config.name == "cyclic":
        triangle = 1 - abs(2 * (progress * config.cycles % 1) - 1)
        return 0.01 + 0.99 * triangle
    if progress < config.warmup:
        return progress / config.warmup
    if config.name == "constant":
        return 1.0
    rest = max(1e-9, 1 - config.warmup)  # what follows the warm-up
    if config.name == "linear":
        return (1 - progress) / rest
    return 0.5 * (1 + math.cos(math.pi * ((progress - config.warmup) / rest)))
