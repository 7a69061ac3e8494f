"""A search whose trials lie on two nodes: Ray in a Slurm allocation."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import ROOT, Slurm, lines, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]  # minutes, of which .ci/run has none left
Places = list[tuple[str, str]]  # of the ranks: node, and the process there


def events(run: Path) -> list[dict[str, Any]]:
    """The lines of a search's record."""
    path = run / "trials.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.is_file() else []


def told(run: Path, number: int, event: str) -> bool:
    """Whether an event of a candidate is recorded."""
    return any((line["number"], line["event"]) == (number, event) for line in events(run))


def workers(log: Path, trial: Path) -> Places:
    """Where a trial's two workers are: Ray Train tells so of the group whose first rank holds it."""
    told = r"TrainController pid=(\d+).* - \(ip=[\d.]+\.(\d+), pid=(\d+)\) world_rank=(\d)"
    first: dict[str, tuple[str, str]] = {}
    groups: list[Places] = []
    for controller, address, process, rank in re.findall(told, log.read_text(errors="replace")):
        place = f"n{int(address) - 10}", process
        if rank == "0":
            first[controller] = place
        else:
            groups.append([first[controller], place])
    _, process, _, node = (trial / "lock").read_text().split()
    return next(group for group in reversed(groups) if group[0] == (node, process))


def alive(slurm: Slurm, places: Places) -> list[tuple[str, str]]:
    """Those of the processes that are there."""
    return [place for place in places if place[1] in slurm.bed("exec", place[0], "ls", "/proc").split()]


def saved(trial: Path) -> int:
    """The step of a trial's newest checkpoint; 0 where there is none."""
    return max((int(path.name[5:]) for path in trial.glob("checkpoints/*/step-*[0-9]")), default=0)


def test_trials_on_two_nodes(slurm, tiny_search, tmp_path):
    """Two at a time, with a process on each node. A node's Ray is killed, and both continue from their
    checkpoints; then one is stopped early, and its processes are gone while the other goes on.
    """
    run, log, config = tmp_path / "run", tmp_path / "log.txt", tmp_path / "search.yaml"
    prediction = {**tiny_search["base"]["prediction"], "epochs": 400, "evaluate_every": 25}
    record = {"save_every": 25, "log_every": 1}
    content = {
        "base": {**tiny_search["base"], "prediction": prediction, "record": record},
        "space": {
            "prediction.optimizer.lr": [1e-2, 1e-9],
            # one can't learn, and takes longer: it comes to the first rung when the other has been there
            "prediction.epochs": {"values": [1600], "when": {"prediction.optimizer.lr": [1e-9]}},
        },
        "workers": {"processes": 2, "spread": True},
        "scheduler": {"name": "asha", "grace": 0.005, "reduction": 2},
    }
    config.write_text(yaml.safe_dump(content))
    options = ["--parsable", "--nodes=2", "--cpus-per-task=2", "--time=20", f"--output={log}"]
    options.append(f"--export=ALL,DISTILLERY_PYTHON={sys.executable},RAY_DEDUP_LOGS=0")
    words = ["tune", f"--config={config}", f"--run={run}"]
    job = slurm("sbatch", *options, ROOT / "slurm" / "ray.sbatch", *words, folder=tmp_path).strip()

    def said() -> str:
        return slurm.state(job) + log.read_text(errors="replace")[-8000:]

    wait_until(lambda: told(run, 0, "begun") and told(run, 1, "begun"), "trials", said)
    poor = next(line["number"] for line in events(run) if len(line["values"]) == 2)
    good = 1 - poor
    trials = [run / "trials" / f"{number:04d}" for number in range(2)]
    wait_until(lambda: told(run, good, "measured") and all(map(saved, trials)), "checkpoints", said)
    for trial in trials:
        assert sorted(node for node, _ in workers(log, trial)) == ["n1", "n2"]
        assert len(alive(slurm, workers(log, trial))) == 2
    steps = [saved(trial) for trial in trials]
    before = [lines(trial) for trial in trials]
    on_it = slurm.processes(f"--node_ip_address={slurm.environment['SLURM_BED_NET']}.12")
    (raylet,) = [pid for pid in on_it if Path(f"/proc/{pid}/exe").resolve().name == "raylet"]
    os.kill(raylet, signal.SIGKILL)

    wait_until(lambda: told(run, poor, "stopped"), "trial that is stopped", said)
    stopped = time.monotonic()
    places = workers(log, trials[poor])
    wait_until(lambda: not alive(slurm, places), "end of its processes", said)
    print(f"gone {time.monotonic() - stopped:.1f} s after the decision")  # pytest -s
    assert len(alive(slurm, workers(log, trials[good]))) == 2
    for trial, past, step in zip(trials, before, steps, strict=True):
        kept = [line for line in past if line["step"] <= step]
        assert lines(trial)[: len(kept)] == kept  # times too: nothing before the checkpoint was repeated
        train = [line["step"] for line in lines(trial) if line["split"] == "train"]
        assert train == list(range(1, len(train) + 1))
        assert len(train) > step
    assert slurm.restarts(job) == 0
    slurm("scancel", job)
    wait_until(lambda: not slurm.processes("ray.scripts.scripts"), "end", said)
