"""The search: Ray Tune runs trials, each of them a job `task` in a run folder of its own.

RUN/trials.jsonl   every event, one a line: what a killed search continues from
RUN/trials/NAME/   a trial, an ordinary run folder
RUN/label/         the teacher's logits, for all trials
RUN/shapes/        what untrained students cost
RUN/ray/           Ray Tune's own files, TensorBoard's among them
RUN/best.yaml      the best trial's settings, a recipe of the job `task`
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from distill.preemption import Stopped
from distill.recorded_run import read_json
from distill.settings import LabelConfig, TaskDistillConfig
from tune.checks import check_candidate, over_budget
from tune.handover import last_change, offer
from tune.population import check_room, replaced_by
from tune.proposals import proposals
from tune.record import ENDED, Record, Trial
from tune.result import result
from tune.settings import EDGE, SchedulerConfig, TuneConfig
from tune.space import Values, fingerprint, with_values
from tune.trial import CHANGES, SHARE, WAITS, Jobs, process_resources, train_in, trial
from tune.workers import line, nodes, take_place, trials_at_once, warn_of_idle_gpus

IN_VAIN = 100  # draws in a row that are refused or known before a search gives up


def search(config: TuneConfig, folder: Path, jobs: Jobs) -> dict[str, Any]:
    """Search, or go on with it; returns the summary's figures. Ray must be up.

    Raises ValueError where the cluster holds no trial, or no candidate can be trained, and Stopped where a
    signal asked for it.
    """
    folder, workers = folder.absolute(), config.workers
    at_once = trials_at_once(nodes(), process_resources(workers), workers.processes, workers.concurrent)
    warn_of_idle_gpus("workers.gpus", workers.gpus)
    if config.scheduler.name == "pbt":
        check_room(config, at_once)
    config = replace(config, base=_labelled(config, folder, jobs))
    record = Record(folder)
    candidates = Candidates(config, record, jobs)
    scheduler = _scheduler(config.scheduler)
    _tell_past(scheduler, record, config.base.task.selection)
    if config.search != "optuna":  # candidates known beforehand are timed while nothing else runs
        candidates.prepare()
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(
            ray.tune.with_parameters(trial, base=config.base, jobs=jobs, workers=workers, home=os.getcwd()),
            WAITS,
        ),
        tune_config=ray.tune.TuneConfig(
            search_alg=candidates,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=at_once,
        ),
        run_config=ray.tune.RunConfig(
            name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}", storage_path=str(folder / "ray"), verbose=0
        ),
    )
    tuner.fit()
    if record.unfinished or not candidates.over:  # Ray Tune takes SIGINT and SIGUSR1 as the wish to return
        raise Stopped(f"stopped after {record.trained - len(record.unfinished)} trials, as asked")
    return result(config, record)


# ---- the teacher's logits


def _labelled(config: TuneConfig, folder: Path, jobs: Jobs) -> TaskDistillConfig:
    """The base, with the teacher's logits computed once where they are the same for all trials."""
    base, run = config.base, folder / "label"
    own = any(key.startswith(("teacher", "task")) for key in config.space)
    if own or base.teacher.outputs or base.teacher.dropout:
        return base
    if not (run / "summary.json").is_file():
        label = LabelConfig(base.teacher, base.task)
        if not (run / "config.yaml").is_file():
            jobs.begin(run, "label", label)
        train_in(jobs, {"job": "label", "run": str(run)}, config.workers)
    return replace(base, teacher=replace(base.teacher, outputs=str(run / "outputs")))


# ---- stopping early


@dataclass(frozen=True)
class _Known:
    """What a scheduler knows a trial by: its name in the record."""

    trial_id: str

    @classmethod
    def of(cls, trial: Any) -> _Known:
        """Ray Tune's trial, or one that is known already."""
        return trial if isinstance(trial, cls) else cls(Path(trial.config["run"]).name)


class _ByName:
    """Makes a scheduler know trials by the record's names: after a kill Ray Tune gives them new ones."""

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        super().on_trial_add(controller, _Known.of(trial))  # type: ignore[misc]

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return super().on_trial_result(controller, _Known.of(trial), result)  # type: ignore[misc]

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(controller, _Known.of(trial), result)  # type: ignore[misc]

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        super().on_trial_error(controller, _Known.of(trial))  # type: ignore[misc]

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        super().on_trial_remove(controller, _Known.of(trial))  # type: ignore[misc]


class _Asha(_ByName, AsyncHyperBandScheduler):
    """Asynchronous successive halving."""


class _Median(_ByName, MedianStoppingRule):
    """Where there are too few others to compare with, a trial goes on; Ray's would let others go first."""

    def _on_insufficient_samples(self, *_: Any) -> str:
        return TrialScheduler.CONTINUE

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self._stopped_trials.clear()  # what a killed search was about to stop goes on, to be judged again
        return super().on_trial_result(controller, trial, result)


def _scheduler(config: SchedulerConfig) -> TrialScheduler:
    match config.name:
        case "asha":
            # Shares work, though Ray's types say int. A little lower, for 3 * 0.1 is more than 0.3.
            rungs: Any = {"grace_period": config.grace * (1 - EDGE), "max_t": 1}
            # Else a trial first measured beyond some rungs would fill them with its later scores.
            rungs["stop_last_trials"] = False
            return _Asha(SHARE, reduction_factor=config.reduction, **rungs)
        case "median":
            return _Median(SHARE, grace_period=config.grace)
        case _:
            return FIFOScheduler()


def _tell_past(scheduler: Any, record: Record, metric: str) -> None:
    """Tell a scheduler of all measurements in the record, in the order in which they were made."""
    scheduler.set_search_properties(metric, "max")
    past = {trial.number: _Known(trial.name) for trial in record.trials.values() if trial.measured}
    for one in past.values():
        scheduler.on_trial_add(None, one)
    for number, share, score in record.measurements:
        if number in past:
            scheduler.on_trial_result(None, past[number], {SHARE: share, metric: score})


# ---- candidates


@ray.remote
def _shape(config: TaskDistillConfig, folder: str, home: str) -> dict[str, Any]:
    take_place(home)
    from tune.shape import shape_of  # torch and all that, which the search itself does without

    return shape_of(config, Path(folder))


class Candidates(Searcher):
    """What Ray Tune asks for trials and tells their scores; it never hears of refused candidates."""

    def __init__(self, config: TuneConfig, record: Record, jobs: Jobs):
        self.score = config.base.task.selection
        super().__init__(metric=self.score, mode="max")
        self.config, self.record, self.jobs = config, record, jobs
        self.source = proposals(config, len(record.trials))
        for ended in record.trials.values():
            if ended.status in ENDED:
                self.source.tell(ended)
        self.known = {fingerprint(trial.values) for trial in record.trials.values()}
        self.next = max(record.trials, default=-1) + 1
        self.ready = record.unfinished
        self.running: dict[str, Trial] = {}  # by Ray Tune's name for them
        self.measuring: tuple[Trial, ray.ObjectRef] | None = None
        self.in_vain = 0
        self.over = False  # no more candidates

    def prepare(self) -> None:
        """Measure the shapes of all candidates, and refuse those above the budget."""
        while self._look(wait=True):
            pass

    def suggest(self, trial_id: str) -> Any:
        """The next trial's folder; None while its shape is being measured."""
        if not self.ready and not self._look(wait=False):
            self.over = True
            return Searcher.FINISHED
        if not self.ready:
            return None
        trial = self.running[trial_id] = self.ready.pop(0)
        change = last_change(self.record.run(trial), self.jobs.stop)
        if change and change["changes"] > trial.changes:  # the search was killed before it recorded it
            self.record.add(trial.number, "changed", **change)
        run = self.record.run(trial)
        self.jobs.begin(run, "task", with_values(self.config.base, trial.values))  # as it is to run now
        self._say(trial, "begins")
        return {"run": str(run)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial has been measured on dev."""
        trial, share = self.running[trial_id], result.get(SHARE, 1.0)
        if result.get(CHANGES, 0) != trial.changes:
            return  # by workers that are to stop, as the trial is to go on from another's checkpoint
        # A resumed trial repeats the measurements made after its checkpoint.
        if share < 1 and share not in (known for known, _ in trial.measured):
            self.record.add(trial.number, "measured", share=share, score=result[self.score])
            if self.config.scheduler.name == "pbt" and (
                other := replaced_by(trial, self.record, self.config)
            ):
                self._change(trial, *other)

    def _change(self, trial: Trial, donor: Trial, values: Values) -> None:
        """Have a trial go on from another's checkpoint, with other values."""
        try:
            check_candidate(with_values(self.config.base, values), self.config.workers.processes)
        except ValueError:  # such as no term at all
            values = donor.values
        change = {"values": values, "donor": donor.number, "changes": trial.changes + 1}
        run, other = self.record.run(trial), self.record.run(donor)
        if offer(run, self.jobs.stop, other, change):
            self._say(self.record.add(trial.number, "changed", **change), f"goes on from {donor.name}")

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial has ended, or is to end: its workers are asked to, and Ray Tune ends its process."""
        if result and not error:  # the measurement that a trial is stopped at comes only here
            self.on_trial_result(trial_id, result)
        trial = self.running.pop(trial_id)
        run = self.record.run(trial)
        if summary := read_json(run / "summary.json"):  # others keep theirs: they may be resumed by hand
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
            self._end(trial, "finished", score=summary["best"][self.score])
        elif error:
            self._end(trial, "failed", reason=_last_line(run / "error.txt"))
        else:
            (run / self.jobs.stop).touch()
            self._end(trial, "stopped")

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Ray Tune's files: a search continues from RUN/trials.jsonl, and loads no pickle."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, as above."""

    def _look(self, wait: bool) -> bool:
        """Begin to measure the next candidate, or take what was measured; False where there are no more."""
        if self.measuring is None and not self._ask():
            return False
        assert self.measuring is not None
        trial, found = self.measuring
        if not ray.wait([found], timeout=None if wait else 0)[0]:
            return True
        self.measuring = None
        try:
            shape = ray.get(found)
        except ray.exceptions.RayError as error:  # such as too little memory for its weights
            self._refuse(trial, f"it can't be measured: {line(error)}", {})
            return True
        if reason := over_budget(shape, self.config.budget):
            self._refuse(trial, reason, shape)
            return True
        self.in_vain = 0
        self.ready.append(self.record.add(trial.number, "begun", values=trial.values, shape=shape))
        return True

    def _ask(self) -> bool:
        """Have the next candidate that passes its checks measured; False where there are no more."""
        enough = self.config.trials is not None and self.record.trained >= self.config.trials
        while not enough and (self.in_vain < IN_VAIN or self.config.search == "grid"):
            values = self.source.ask(self.next)
            if values is None:
                return False
            trial = Trial(self.next, values, "refused")
            self.next += 1
            if fingerprint(values) in self.known:
                self.in_vain += 1
                self.source.tell(trial)
                continue
            self.known.add(fingerprint(values))
            try:
                settings = with_values(self.config.base, values)
                check_candidate(settings, self.config.workers.processes)
            except ValueError as error:
                self._refuse(trial, " ".join(str(error).split()), {})
                continue
            workers = self.config.workers
            task = _shape.options(num_cpus=workers.cpus, num_gpus=workers.gpus)
            folder = str(self.record.folder / "shapes")
            self.measuring = trial, task.remote(settings, folder, os.getcwd())
            return True
        if not (enough or self.over):
            print(f"{IN_VAIN} draws in a row were refused or known: no more are drawn", file=sys.stderr)
        self.over = True
        return False

    def _refuse(self, trial: Trial, reason: str, shape: dict[str, Any]) -> None:
        self.in_vain += 1
        refused = self.record.add(trial.number, "refused", values=trial.values, shape=shape, reason=reason)
        self.source.tell(refused)
        self._say(trial, f"refused: {reason}")

    def _end(self, trial: Trial, event: str, **facts: Any) -> None:
        ended = self.record.add(trial.number, event, **facts)
        self.source.tell(ended)
        at = f" at {ended.measured[-1][0]:.0%} of its training" if event == "stopped" else ""
        score = f", {self.score} {ended.last_score:.4f}" if ended.last_score is not None else ""
        self._say(trial, event + at + score + (f": {ended.reason}" if ended.reason else ""))

    def _say(self, trial: Trial, text: str) -> None:
        print(f"{trial.title}: {text}", file=sys.stderr, flush=True)


def _last_line(path: Path) -> str:
    """The end of a traceback: what was wrong, without how a run by itself would be resumed: no trial is."""
    lines = path.read_text(encoding="utf-8").strip().splitlines() if path.is_file() else []
    return lines[-1].partition(": --resume")[0][:500] if lines else "its process was lost"
