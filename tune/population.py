"""Population based training (Jaderberg et al. 2017): the worst trials go on from the best's checkpoints.

Decided by the search's record alone, so a restart decides as before. Imports no torch and no Ray.
"""

from __future__ import annotations

import random

from tune.proposals import Grid
from tune.record import Record, Trial
from tune.settings import EDGE, TuneConfig
from tune.space import Values, read_space


def check_room(config: TuneConfig, at_once: int) -> None:
    """Refuse a population that can't train at once. Raises ValueError."""
    trials = config.trials or 0
    if config.search == "grid":
        grid = len(Grid(config).candidates)
        trials = min(grid, config.trials or grid)
    if trials > at_once:
        raise ValueError(
            f"scheduler: pbt trains all {trials} trials at once, and there is room for {at_once}; give "
            "fewer trials, or fewer or smaller workers"
        )


def replaced_by(trial: Trial, record: Record, config: TuneConfig) -> tuple[Trial, Values] | None:
    """The trial whose checkpoint one just measured goes on from, and its new values; None for its own."""
    shares = [0.0, *(share for share, _ in trial.measured)]
    before, now = (int(share / config.scheduler.grace + EDGE) for share in shares[-2:])
    ranked = sorted((one for one in record.unfinished if one.measured), key=_last)
    count = max(1, int(len(ranked) / config.scheduler.reduction))
    # By identity, for trials are equal by their values: one of another record is none of these.
    if now == before or all(one is not trial for one in ranked[:count]):
        return None
    rng = random.Random(f"{config.seed}/{trial.number}/{shares[-1]}")
    donor = rng.choice(ranked[-count:])
    if _last(donor) <= _last(trial):  # or it is the trial itself, where that is alone
        return None
    domains = read_space(config.space)
    return donor, {key: domain.near(donor.values[key], rng) for key, domain in domains.items()}


def _last(trial: Trial) -> float:
    return trial.measured[-1][1]
