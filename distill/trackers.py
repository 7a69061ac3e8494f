"""Trackers: where metrics go besides the run folder, if anywhere. Each library is imported when it is used.

    tensorboard   RUN/tensorboard/STAGE, one folder of events for each stage
    wandb         a run of the project distillery, or $WANDB_PROJECT
    mlflow        a run of the experiment distillery, or $MLFLOW_EXPERIMENT_NAME, at $MLFLOW_TRACKING_URI,
                  else in MLflow's own place, mlflow.db in the current folder

Rank 0 alone logs. A resumed run continues the tracker's run, whose name RUN/trackers.json keeps.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.whole import write_whole

Values = dict[str, float]
Log = Callable[[int, Values], None]  # of a step


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is not installed. Raises ValueError."""
    for name in names:
        for package in _packages(name):
            if importlib.util.find_spec(package) is None:
                why = "" if package == name else f", which {name} needs"
                advice = f"pip install -e '.[track]' in Distillery's folder, or leave {name} out"
                raise ValueError(f"record.trackers: {package} is not installed{why}; {advice}")


def _packages(name: str) -> list[str]:
    """What a tracker imports: mlflow-skinny lacks what a local database needs; with a server none is."""
    store = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:"
    return [name, "sqlalchemy", "alembic"] if name == "mlflow" and store.startswith("sqlite:") else [name]


@contextmanager
def tracking(
    names: Sequence[str], folder: Path, stage: str, start: int
) -> Iterator[Callable[[Values], None]]:
    """Yields what takes a stage's rows of metrics, from the step after `start` on.

    Raises ValueError where a tracker can't begin. One that fails later is named once and then left out:
    a server that has gone ends no training.
    """
    contexts: dict[str, AbstractContextManager[Log]] = {}
    open_ones: dict[str, Log] = {}

    def log(row: dict[str, Any]) -> None:
        values = {f"{row['split']}/{key}": value for key, value in row.items() if key not in NO_VALUE}
        for name in list(open_ones):
            try:
                open_ones[name](row["step"], values)
            except Exception as error:
                print(f"warning: {name} gets no more metrics: {error}", file=sys.stderr)
                del open_ones[name]

    try:
        for name in names:
            context = TRACKERS[name](folder, stage, start)
            try:
                open_ones[name] = context.__enter__()
            except Exception as error:  # whatever three libraries and their networks raise
                raise ValueError(f"record.trackers: {name} can't begin: {error}") from error
            contexts[name] = context
        yield log
    except BaseException as error:
        _close(contexts, error)
        raise
    _close(contexts, None)


def _close(contexts: dict[str, AbstractContextManager[Log]], ending: BaseException | None) -> None:
    """End the trackers' runs, by the error that ended ours if one did; what fails there is told."""
    for name, context in contexts.items():
        try:
            context.__exit__(type(ending) if ending else None, ending, None)
        except Exception as error:
            print(f"warning: {name} could not close its run: {error}", file=sys.stderr)


NO_VALUE = ("stage", "split", "step", "rows_digest")


@contextmanager
def _tensorboard(folder: Path, stage: str, start: int) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    # What a run that was killed logged after its checkpoint is not shown.
    writer = SummaryWriter(str(folder / "tensorboard" / stage), purge_step=start + 1 if start else None)

    def log(step: int, values: Values) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    with writer:
        yield log


@contextmanager
def _wandb(folder: Path, stage: str, start: int) -> Iterator[Log]:
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "distillery"),
        name=folder.resolve().name,
        dir=str(folder),
        id=_kept(folder, "wandb", lambda: secrets.token_hex(4)),
        resume="allow",
        config=_settings(folder),
    )
    run.define_metric(f"{stage}/step")
    run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    try:
        yield lambda step, values: run.log(
            {f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in values.items()}}
        )
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


@contextmanager
def _mlflow(folder: Path, stage: str, start: int) -> Iterator[Log]:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient()

    def create() -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "distillery")
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        run = client.create_run(experiment, run_name=folder.resolve().name).info.run_id
        settings = [Param(key, str(value)[:500]) for key, value in _flat(_settings(folder))]
        for begin in range(0, len(settings), 100):  # as many as MLflow takes at once
            client.log_batch(run, params=settings[begin : begin + 100])
        return run

    run = _kept(folder, "mlflow", create)
    client.update_run(run, status="RUNNING")

    def log(step: int, values: Values) -> None:
        now = time.time_ns() // 1_000_000
        # A store of files has a folder for what stands before a slash: loss can't be one.
        names = {name: f"{stage}/{name.replace('loss/', 'loss.')}" for name in values}
        metrics = [Metric(names[name], value, now, step) for name, value in values.items()]
        client.log_batch(run, metrics=metrics)

    try:
        yield log
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run, "FINISHED")


TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


def _kept(folder: Path, tracker: str, create: Callable[[], str]) -> str:
    """The tracker's name of this run, made once."""
    file = folder / "trackers.json"
    names = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if tracker not in names:
        names[tracker] = create()
        write_whole(file, json.dumps(names) + "\n")
    return names[tracker]


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "config.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
