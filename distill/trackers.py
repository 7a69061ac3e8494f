"""Trackers: where metrics go besides the run folder, if anywhere. Each library is imported when it is used.

    tensorboard   RUN/tensorboard/STAGE, one folder of events for each stage
    wandb         a run of the project distillery, or $WANDB_PROJECT
    mlflow        a run of the experiment distillery, or $MLFLOW_EXPERIMENT_NAME, at $MLFLOW_TRACKING_URI

Rank 0 alone logs. A resumed run continues the tracker's run, whose name RUN/trackers.json keeps.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.whole import write_whole

Values = dict[str, float]
Log = Callable[[int, Values], None]  # of a step


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is not installed. Raises ValueError."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"record.trackers: {name} is not installed; pip install {name}, or leave it out"
            )


@contextmanager
def tracked(
    names: Sequence[str], folder: Path, stage: str, start: int
) -> Iterator[Callable[[Values], None]]:
    """What takes a stage's rows of metrics, from the step after `start` on.

    Raises ValueError where a tracker can't begin. One that fails later is told once and left: a server
    that has gone ends no training.
    """
    with ExitStack() as stack:
        open_ones: dict[str, Log] = {}
        for name in names:
            try:
                open_ones[name] = stack.enter_context(TRACKERS[name](folder, stage, start))
            except Exception as error:  # of three libraries and their networks
                raise ValueError(f"record.trackers: {name} can't begin: {error}") from error

        def log(row: dict[str, Any]) -> None:
            values = {f"{row['split']}/{key}": value for key, value in row.items() if key not in NO_VALUE}
            for name in list(open_ones):
                try:
                    open_ones[name](row["step"], values)
                except Exception as error:
                    print(f"warning: {name} gets no more metrics: {error}", file=sys.stderr)
                    del open_ones[name]

        yield log


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
    finally:
        run.finish()


@contextmanager
def _mlflow(folder: Path, stage: str, start: int) -> Iterator[Log]:
    from mlflow import MlflowClient

    client = MlflowClient()

    def create() -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "distillery")
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        run = client.create_run(experiment, run_name=folder.resolve().name).info.run_id
        for key, value in _flat(_settings(folder)):
            client.log_param(run, key, str(value)[:500])
        return run

    run = _kept(folder, "mlflow", create)
    client.update_run(run, status="RUNNING")

    def log(step: int, values: Values) -> None:
        for name, value in values.items():
            # A store of files has a folder for what stands before a slash: loss can't be one.
            client.log_metric(run, f"{stage}/{name.replace('loss/', 'loss.')}", value, step=step)

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
