"""What a run has cost, leg by leg: RUN/legs.json. A leg ends where the run ends, stops or is killed; when
it is resumed another begins.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_pipeline.whole import write_whole
from distill.energy import EnergyMeter

FILE = "legs.json"
FIGURES = ("wall_s", "cpu_s", "gpus")  # of every leg
DEVICES = ("cpu", "gpu")  # whose joules some machines tell
SHORTEST, LONGEST = 0.1, 60.0  # seconds from beat to beat


@contextmanager
def leg(folder: Path, processes: int) -> Iterator[None]:
    """Record what a run of so many processes takes from here on; killed, it counts up to its last beat.

    Beats come after a tenth of a second, two, four, and in the end every minute: a leg loses half of itself
    at most.
    """
    before, ended, meter = read(folder), threading.Event(), _Meter(processes)

    def beat() -> None:
        with suppress(OSError):  # of a full disk, which the run itself will tell
            write_whole(folder / FILE, json.dumps([*before, meter.read()], indent=2) + "\n")

    def beats() -> None:
        while not ended.wait(min(LONGEST, max(SHORTEST, meter.seconds()))):
            beat()

    beat()
    thread = threading.Thread(target=beats, name="legs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        beat()


def spent(folder: Path) -> dict[str, float]:
    """What all legs took, as a summary tells it; nothing where none is recorded. Raises ValueError."""
    legs = read(folder)
    if not legs:
        return {}
    joules = {device: [leg[f"{device}_j"] for leg in legs if f"{device}_j" in leg] for device in DEVICES}
    return {
        "wall_s": round(sum(leg["wall_s"] for leg in legs), 2),
        "cpu_hours": round(sum(leg["cpu_s"] for leg in legs) / 3600, 4),
        "gpu_hours": round(sum(leg["wall_s"] * leg["gpus"] for leg in legs) / 3600, 4),
        **{f"{device}_wh": round(sum(told) / 3600, 3) for device, told in joules.items() if told},
    }


def read(folder: Path) -> list[dict[str, Any]]:
    """The legs of a run. Raises ValueError where the file is damaged."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        legs = json.loads(path.read_text(encoding="utf-8"))
        for leg in legs:
            sum(leg[figure] for figure in FIGURES)  # raises where one is no number
            sum(leg.get(f"{device}_j", 0) for device in DEVICES)
        return legs
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path}: no list of a run's legs; remove the file") from None


class _Meter:
    """Measures one leg, from its creation on."""

    def __init__(self, processes: int):
        torch = sys.modules.get("torch")
        self.processes = processes
        self.gpus = processes if torch and torch.cuda.is_available() else 0
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.energy = EnergyMeter(min(self.gpus, here))
        self.begun, self.cpu = time.monotonic(), _cpu_seconds()

    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def read(self) -> dict[str, Any]:
        """The leg so far; the CPU's seconds are this process's, times the processes; joules this node's."""
        return {
            "started": self.started,
            "wall_s": round(self.seconds(), 2),
            "cpu_s": round((_cpu_seconds() - self.cpu) * self.processes, 2),
            "processes": self.processes,
            "gpus": self.gpus,
            **{f"{device}_j": round(joules, 1) for device, joules in self.energy.read().items()},
        }


def _cpu_seconds() -> float:
    """Processor time of this process and of those it started that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
