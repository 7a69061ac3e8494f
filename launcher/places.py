"""The places by name. A place is a module of

    processes(launch)                 how many processes of a training run on each node
    describe(job, launch, processes)  what `start` runs, for --dry-run; a pure function
    start(job, launch, processes)     runs or submits the job of a begun run folder; returns the exit code

and, where jobs are submitted, `state(record)`, `logs(record, follow)` and `cancel(record)` of what it left
in RUN/place.json.
"""

from __future__ import annotations

import importlib
from typing import Any

PLACES = {
    "local": "launcher.local",
    "node": "launcher.node",
    "slurm": "launcher.slurm",
    "ray": "launcher.ray_place",
}


def place(name: str) -> Any:
    """The module of a place, imported when it is needed."""
    return importlib.import_module(PLACES[name])
