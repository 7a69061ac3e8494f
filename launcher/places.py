"""The places by name. A place is a module of

    processes(launch)                 how many processes of a training run on each node
    describe(job, launch, processes)  what `start` runs, for --dry-run; a pure function
    start(job, launch, processes)     runs or submits the job of a begun run folder; returns the exit code

and, where jobs are submitted, of what it left in RUN/place.json

    state(record)                     what the cluster says of a job that waits or runs, and its last word
                                      on one that has ended; each is empty where it has none
    logs(record, follow)              prints what the job says
    cancel(record)                    ends it
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
