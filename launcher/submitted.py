"""Runs on a cluster: RUN/place.json says where; the jobs `status`, `logs` and `cancel` read it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.bucket import is_bucket
from data_pipeline.untrusted import one_line
from data_pipeline.whole import write_whole
from distill.run_folder import writer
from launcher.jobs import again
from launcher.places import PLACES, place
from launcher.settings import job_of

RECORD = "place.json"


@dataclass
class StatusConfig:
    """Settings of `distillery status RUN ...`.

    Args:
        runs: Run folders.
    """

    runs: list[str]


@dataclass
class LogsConfig:
    """Settings of `distillery logs RUN`.

    Args:
        runs: The run folder.
        follow: Go on until the job has ended.
    """

    runs: list[str]
    follow: bool = True


@dataclass
class CancelConfig:
    """Settings of `distillery cancel RUN ...`.

    Args:
        runs: Run folders.
    """

    runs: list[str]


def write(folder: Path, record: dict[str, str]) -> None:
    """Keep where a run was submitted to, and the job's name there."""
    write_whole(folder / RECORD, json.dumps(record) + "\n")


def read(folder: Path) -> dict[str, str]:
    """Where a run was submitted to; empty where it was not. Raises ValueError where that can't be told."""
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if {"job", "run"} <= record.keys() and record.get("place") in PLACES:
            return record
    except (ValueError, AttributeError, TypeError):
        pass
    raise ValueError(f"{path} is damaged; remove it, and look after the job by its cluster's own commands")


def state(folder: Path) -> str:
    """What its cluster says of a run; empty where it has ended, or is not there (any more).

    The cluster's last word is kept: the cluster may go.
    """
    record = read(folder)
    if not record or "ended" in record:
        return ""
    now, last = place(record["place"]).state(record)
    if last:
        write(folder, {**record, "ended": last})
    return now


def status(config: StatusConfig) -> int:
    """Print a line or two for each run; returns 2 where one is no run folder, or its cluster is gone."""

    def tell(name: str) -> None:
        folder = _run_folder(name)
        print(f"{name}: {_in_words(folder)}")
        if step := _last_step(folder):
            print(f"  {step}")

    return _each("status", config.runs, tell)


def _each(job: str, names: list[str], do: Callable[[str], None]) -> int:
    """Do something with each run, even where another fails; returns 2 if any failed, else 0."""
    code = 0
    for name in names:
        try:
            do(name)
        except (ValueError, OSError) as error:
            said = one_line(str(error).removeprefix(f"{name} "))
            print(f"distillery {job}: error: {name}: {said}", file=sys.stderr)
            code = 2
    return code


def _in_words(folder: Path) -> str:
    if (folder / "summary.json").is_file():
        return f"finished; see {folder}/summary.json"
    record = read(folder)
    where = f"{record['place']} job {record['job']}" if record else "not submitted to a cluster"
    if now := state(folder):
        return f"{where}: " + "; ".join(now.splitlines())
    if who := writer(folder):  # started, or resumed, without a cluster
        return f"at work, as {who}"
    last = read(folder).get("ended", "")  # state() may just have kept it
    if last == "SUCCEEDED":
        there = record["run"] + ("" if is_bucket(record["run"]) else " on the cluster")
        return f"{where}: finished; see {there}"
    if last:
        where += f": {last}"
    return f"{where}: ended without finishing; {_again(folder)}"


def _again(folder: Path) -> str:
    try:
        return again(job_of(str(folder / "config.yaml")))
    except ValueError:  # by another version
        return "the same command with --resume goes on with it"


def _last_step(folder: Path) -> str:
    """The last line of metrics in words."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):  # a line of a killed process
            row = json.loads(line)
            figures = [f"{name} {row[name]:.4g}" for name in ("loss", "accuracy") if name in row]
            return "  ".join([f"{row['stage']} step {row['step']}", *figures])
    return ""


def logs(config: LogsConfig) -> int:
    """Print what a submitted job has said, and go on saying it until it has ended."""
    if len(config.runs) != 1:
        raise ValueError("logs: give one run folder")
    folder = _submitted(config.runs[0])
    record = read(folder)
    try:
        return place(record["place"]).logs(record, config.follow)
    except KeyboardInterrupt:
        return 130


def cancel(config: CancelConfig) -> int:
    """End submitted jobs; what they have written stays. Returns 2 where one could not be ended."""

    def end(name: str) -> None:
        folder = _submitted(name)
        record = read(folder)
        if not state(folder):
            print(f"{name}: not running, nothing to cancel")
            return
        place(record["place"]).cancel(record)
        print(f"{name}: cancelled {record['place']} job {record['job']}")

    return _each("cancel", config.runs, end)


def _run_folder(name: str) -> Path:
    folder = Path(name)
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{name} is no run folder (no config.yaml there)")
    return folder


def _submitted(name: str) -> Path:
    folder = _run_folder(name)
    if not read(folder):
        raise ValueError(f"{name} was not submitted to a cluster")
    return folder
