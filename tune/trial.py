"""One trial: a process that Ray Tune starts, and that waits for Ray Train's workers, the ranks of a job.

Imports neither torch nor DeepSpeed itself: it starts once for each trial.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.tune
from ray.train._internal.session import get_session
from ray.tune.integration.ray_train import TuneReportCallback

from data_pipeline.whole import write_whole
from tune.result import read_summary
from tune.settings import WorkersConfig
from tune.workers import Rank, line, reserved, train

SHARE = "share"  # of a trial's training that is done: what schedulers compare trials at
# The process takes no CPU from the workers, and lives on the head, whose loss ends the search anyway.
WAITS = {"node:__internal_head__": 0.001}
LEAVE = 60  # seconds that a stopped trial's workers have for their last step and checkpoint


@dataclass(frozen=True)
class Jobs:
    """How the launcher runs a job: the search does not know it.

    Attributes:
        begin: Begins a run folder: (folder, job, settings).
        rank: One rank of the job in a begun folder, in a Ray Train worker; a module's function.
        stop: Name of the file in a run folder that asks its training to stop.
    """

    begin: Callable[[Path, str, Any], None]
    rank: Rank
    stop: str


def trial(settings: dict[str, str], folder: str, jobs: Jobs, workers: WorkersConfig, home: str) -> None:
    """Run a trial to its end; Ray Tune is told of its scores on the way and of the best at last."""
    os.chdir(home)  # Ray Tune has gone elsewhere, and paths in settings may be relative
    run = Path(folder, "trials", settings["name"])
    (run / jobs.stop).unlink(missing_ok=True)
    place = {"job": "task", "run": str(run), "share": SHARE}
    try:
        train_in(jobs, place, workers, TuneReportCallback())
    except Exception as error:
        write_whole(run / "error.txt", f"{traceback.format_exc()}\n{line(error)}\n")
        raise
    if (summary := read_summary(run)) and not (run / jobs.stop).exists():
        ray.tune.report({SHARE: 1.0, **summary["best"]})


class _Leaving:
    """What Ray Tune's process of a trial does when it is told to stop: it waits for the workers to end.

    Killed at once, as is usual, it leaves their placement group to a watchman of Ray Train's, who sees
    nothing in a cluster without a dashboard; no later trial would fit.
    """

    def cleanup(self) -> None:
        session = get_session()
        if session and session.training_started:
            session.training_thread.join(LEAVE)
        super().cleanup()  # type: ignore[misc]


trial.__mixins__ = (_Leaving,)  # type: ignore[attr-defined]  # Ray Tune's name for it


def train_in(jobs: Jobs, place: dict[str, str], workers: WorkersConfig, *callbacks: Any) -> None:
    """Run a job in a begun folder as the search's workers."""
    retries, spread = workers.retries, workers.spread
    train(jobs.rank, place, workers.processes, each(workers), retries, spread, callbacks)


def each(workers: WorkersConfig) -> dict[str, float]:
    """What Ray reserves for one of them."""
    return reserved(workers.cpus, workers.gpus)
