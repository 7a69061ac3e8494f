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
from distill.recorded_run import read_json
from distill.run_folder import held
from distill.settings import TaskDistillConfig
from tune.handover import close, last_change, take_over
from tune.settings import WorkersConfig
from tune.space import with_values
from tune.workers import Rank, line, reserved, train

SHARE = "share"  # of a trial's training that is done: what schedulers compare trials at
CHANGES = "changes"  # how often it had gone on from another's checkpoint when it was measured
# The process takes no CPU from the workers, and lives on the head, whose loss ends the search anyway.
WAITS = {"node:__internal_head__": 0.001}
# Seconds that a stopped trial's workers have for their last step and checkpoint; Ray Tune gives them 600.
LEAVE = 540


@dataclass(frozen=True)
class Jobs:
    """How the launcher runs a job, given to the search, which may not import it.

    Attributes:
        begin: Begins a run folder: (folder, job, settings).
        rank: One rank of the job in a begun folder, in a Ray Train worker; a module's function.
        stop: Name of the file in a run folder that asks its training to stop.
    """

    begin: Callable[[Path, str, Any], None]
    rank: Rank
    stop: str


def trial(
    settings: dict[str, str], base: TaskDistillConfig, jobs: Jobs, workers: WorkersConfig, home: str
) -> None:
    """Run the trial of the folder `run` to its end; Ray Tune is told each score and, last, the best.

    Workers that end because something was offered to it (tune/handover.py) begin again from there.
    """
    os.chdir(home)  # Ray Tune has gone elsewhere, and paths in settings may be relative
    run = Path(settings["run"])
    loop_config = {"job": "task", "run": str(run), "share": SHARE}
    try:
        ended = False
        while not ended:
            changes = _begin(run, base, jobs)
            train_in(jobs, loop_config, workers, _Report(changes))
            closed = close(run, jobs.stop)
            ended = not (run / jobs.stop).is_dir()
    except Exception as error:
        write_whole(run / "error.txt", f"{traceback.format_exc()}\n{line(error)}\n")
        raise
    if (summary := read_json(run / "summary.json")) and closed:
        ray.tune.report({SHARE: 1.0, CHANGES: changes, **summary["best"]})


def _begin(run: Path, base: TaskDistillConfig, jobs: Jobs) -> int:
    """Make a trial ready to train, from what it was offered if anything; returns its number of changes."""
    change = last_change(run, jobs.stop)
    if (run / jobs.stop).is_dir():
        with held(run, wait=2 * LEAVE):  # until workers that a killed search has left have ended
            if change:
                jobs.begin(run, "task", with_values(base, change["values"]))
            take_over(run, jobs.stop)
    (run / jobs.stop).unlink(missing_ok=True)
    return change["changes"] if change else 0


class _Report(TuneReportCallback):
    """Ray's callback, and how often the trial had changed: a score may come in after the next change."""

    def __init__(self, changes: int):
        super().__init__()
        self.changes = changes

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        super().after_report(run_context, [{**metrics[0], CHANGES: self.changes}], checkpoint)


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


def train_in(jobs: Jobs, loop_config: dict[str, str], workers: WorkersConfig, *callbacks: Any) -> None:
    """Run a job in a begun folder as the search's workers."""
    retries, spread = workers.retries, workers.spread
    train(jobs.rank, loop_config, workers.processes, process_resources(workers), retries, spread, callbacks)


def process_resources(workers: WorkersConfig) -> dict[str, float]:
    """What Ray reserves for each process of a trial."""
    return reserved(workers.cpus, workers.gpus)
