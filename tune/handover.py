"""How a trial goes on from another's checkpoint. All of it lies in the trials' run folders.

The search lays the checkpoint out in a folder beside the trial's STOP file and renames it to STOP: one step
that asks the workers to stop and says what to go on from. The trial's process then moves the parts to where
they belong. What a kill interrupts is done after the restart. Imports no torch and no Ray.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from data_pipeline.whole import write_whole
from distill.recorded_run import read_metrics

CHANGE = "changed.json"  # the record's line of the change, in the trial's folder once it is done
WAIT = 10.0  # seconds for a donor's checkpoint of what it was last measured with


def offer(run: Path, stop: str, donor: Path, change: dict[str, Any]) -> bool:
    """Have a running trial go on from another's checkpoint; False where one of them ends or is to end."""
    place = run / f"{stop}.partial"
    until = time.monotonic() + WAIT
    try:
        while not (donor / stop).exists() and time.monotonic() < until:
            if _lay_out(donor, place):
                write_whole(place / CHANGE, json.dumps(change))
                place.rename(run / stop)
                return True
            time.sleep(0.1)
    except OSError:  # `close` came first, or the disk is full
        pass
    shutil.rmtree(place, ignore_errors=True)
    return False


def close(run: Path, stop: str) -> bool:
    """Keep a trial at its end from being offered anything; False where it has been, or is to stop."""
    try:
        (run / stop).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def take_over(run: Path, stop: str) -> None:
    """Move what was offered to where it belongs. Called again after a kill, it moves what is left."""
    (run / "summary.json").unlink(missing_ok=True)
    for part in sorted((run / stop).iterdir(), reverse=True):  # the change last
        if (run / part.name).is_dir():
            shutil.rmtree(run / part.name)
        os.replace(part, run / part.name)
    (run / stop).rmdir()


def last_change(run: Path, stop: str) -> dict[str, Any] | None:
    """The newest change that a trial was offered, done or not."""
    for path in (run / stop / CHANGE, run / CHANGE):
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    return None


def _lay_out(run: Path, place: Path) -> bool:
    """Copy a running trial's newest checkpoints, its best student and its curves.

    False where they are not of one moment: the trial has been measured since, so its student may be newer,
    or newer checkpoints have replaced some meanwhile.
    """
    shutil.rmtree(place, ignore_errors=True)
    newest = {path.parent.name: path for path in sorted((run / "checkpoints").glob("*/step-*[0-9]"))}
    try:
        for stage, path in newest.items():
            copy = _copied(path, place / "checkpoints" / stage / path.name)
            record = json.loads((copy / "checksums.json").read_text(encoding="utf-8"))
            if not all((copy / name).is_file() for name in record):
                return False
        _copied(run / "student", place / "student")
        shutil.copy(run / "metrics.jsonl", place)  # no link: it is appended to
    except OSError:
        return False
    steps = {stage: int(path.name.removeprefix("step-")) for stage, path in newest.items()}
    rows, _ = read_metrics(place / "metrics.jsonl")
    return all(row["step"] <= steps.get(row["stage"], 0) for row in rows if row["split"] == "dev")


def _copied(folder: Path, copy: Path) -> Path:
    """A copy of a folder, by links where the disk has them: its files are never written again."""
    return Path(shutil.copytree(folder, copy, copy_function=_link))


def _link(file: str, copy: str) -> None:
    try:
        os.link(file, copy)
    except OSError:
        shutil.copy(file, copy)
