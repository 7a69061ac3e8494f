"""The job `tune`: brings Ray up where it is not, and lends the search the launcher's way to run a job."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from data_pipeline.signals import signals_held
from launcher import ray_place, runs
from tune.settings import TuneConfig


def run(config: TuneConfig, folder: Path) -> dict[str, Any]:
    """Search on the cluster at $RAY_ADDRESS, or on one of its own on this machine."""
    os.environ["OMP_NUM_THREADS"] = str(config.workers.cpus)  # of workers on this machine
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Ray's own table, which `verbose` does not silence
    os.environ.setdefault("RAY_worker_niceness", "0")  # else whatever else runs here slows what is timed
    if not os.environ.get("RAY_ADDRESS"):  # a cluster of our own, which nobody else may use
        ray_place.be_alone()
    from launcher import ray_driver
    from tune.search import Jobs, search

    with signals_held(signal.SIGUSR1):  # it would end Ray's processes
        ray_driver.connect("tune")
    return search(config, folder, Jobs(begin=runs.begin, rank=ray_driver.rank, stop=ray_driver.STOP))
