"""Searches by the command, on a real Ray of this machine."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from launcher import jobs
from launcher.settings import from_yaml, to_yaml
from tests.processes import ROOT, of_a_process

slow = pytest.mark.slow  # Ray's start, and six processes for every trial
SECONDS = 900  # until a test gives up; none is judged by its time
COMMAND = [sys.executable, "-m", "launcher.cli", "tune"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_DEDUP_LOGS": "0"}
ENVIRONMENT.pop("RAY_ADDRESS", None)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts the command, its words kept in a log beside the run; what is left of it ends with the test."""
    started = []

    def begin(run: Path, *more: str) -> subprocess.Popen:
        with (run.parent / "log.txt").open("a") as log:
            words = [*COMMAND, f"--run={run}", *more]
            started.append(subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log))
        return started[-1]

    yield begin
    for process in started:
        process.terminate()
        process.wait()


def finish(process: subprocess.Popen, run: Path) -> dict[str, Any]:
    """Wait for the end of the command; returns the summary."""
    assert process.wait(timeout=SECONDS) == 0, (run.parent / "log.txt").read_text()[-8000:]
    return json.loads((run / "summary.json").read_text())


def events(run: Path) -> list[dict[str, Any]]:
    path = run / "trials.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.is_file() else []


def workers(run: Path) -> list[Path]:
    """The folders in /proc of all workers that Ray Train has started, in their order."""
    found = re.findall(r"pid=(\d+)\) world_rank=", (run.parent / "log.txt").read_text())
    return [Path("/proc", process) for process in found]


def wait_until(ready: Callable[[], bool], process: subprocess.Popen, run: Path) -> None:
    """Wait for something to be so while the command is at work."""
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert process.poll() is None, (run.parent / "log.txt").read_text()[-8000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def drivers(run: Path) -> list[int]:
    """The search's own process."""
    words = f"launcher.rank\0tune\0{run}\0".encode()
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if words in of_a_process(path)
    ]


def test_a_search_is_refused_where_no_candidate_can_be_trained(tiny_search):
    """The base has more layers than the teacher, which matters where a candidate is a transformer."""
    content = {**tiny_search, "base": {**tiny_search["base"], "student": {"layers": 9}}}
    for kinds, said in ((["transformer", "cnn"], ""), (["transformer"], "student.layers: 9")):
        config = from_yaml("tune", yaml.safe_dump({**content, "space": {"student.kind": kinds}}))
        with pytest.raises(ValueError, match=said) if said else nullcontext():
            jobs.check("tune", config, 1)
    content["base"]["task"] = {**tiny_search["base"]["task"], "dev": "nowhere.tsv"}
    config = from_yaml("tune", yaml.safe_dump({**content, "space": {"student.kind": ["cnn"]}}))
    with pytest.raises(ValueError, match=r"nowhere\.tsv"):
        jobs.check("tune", config, 1)


@slow
def test_a_budget_and_a_kill(tmp_path, tiny_search, start):
    """Half of the candidates are too large and train no step; the rest survive a kill of the search."""
    config = tmp_path / "search.yaml"
    space = {"student.kind": ["cnn", "bilstm"], "prediction.optimizer.lr": [1e-3, 1e-2]}
    config.write_text(
        yaml.safe_dump({**tiny_search, "space": space, "budget": {"parameters": 500_000}}, sort_keys=False)
    )
    run = tmp_path / "run"
    first = start(run, f"--config={config}")
    wait_until(lambda: any(line["event"] == "finished" for line in events(run)), first, run)
    (driver,) = drivers(run)
    os.kill(driver, signal.SIGKILL)
    first.wait()
    before = events(run)
    finished = [line["number"] for line in before if line["event"] == "finished"]
    found = finish(start(run, "--resume"), run)

    again = events(run)[len(before) :]
    assert not {line["number"] for line in again} & set(finished)  # nothing that had ended is repeated
    status = {trial["name"]: trial["status"] for trial in found["search"]["trials"]}
    assert sorted(status.values()) == ["finished", "finished", "refused", "refused"]
    refused = [trial for trial in found["search"]["trials"] if trial["status"] == "refused"]
    assert all(trial["steps"] == 0 and "above the budget" in trial["reason"] for trial in refused)
    assert not (run / "trials" / "0002").exists()
    best = max(found["search"]["trials"], key=lambda trial: (trial["status"] == "finished", trial["score"]))
    assert found["search"]["best"] == best["name"]
    recipe_of_best = from_yaml("task", (run / "best.yaml").read_text())
    assert recipe_of_best.teacher.outputs is None  # for any place; a comment names this one's
    recipe_of_best.teacher.outputs = str(run / "label" / "outputs")
    assert f"--teacher.outputs {recipe_of_best.teacher.outputs}" in (run / "best.yaml").read_text()
    trial = run / "trials" / best["name"].split(" ")[0]
    assert to_yaml(recipe_of_best) == (trial / "config.yaml").read_text()
    summary = json.loads((trial / "summary.json").read_text())
    assert summary["best"]["accuracy"] == best["score"]
    assert "<svg" in (run / "report.html").read_text()
    assert (trial / "student" / "model.safetensors").is_file()
    assert list(run.glob("trials/*/checkpoints")) == []


@slow
def test_trials_that_are_stopped_or_fail(tmp_path, tiny_search, start):
    """Two processes each: a rate that can't learn is stopped, one that breaks fails and is told."""
    config = tmp_path / "search.yaml"
    space = {"prediction.optimizer.lr": [1e-2, 1e-9, 1e30]}
    scheduler = {"name": "asha", "grace": 0.1, "reduction": 2}
    each = {"processes": 2, "concurrent": 1, "retries": 0}
    prediction = {
        **tiny_search["base"]["prediction"],
        "epochs": 8,
        "evaluate_every": 20,
    }  # time to be stopped in
    base = {**tiny_search["base"], "prediction": prediction}
    seed = 5  # whose order is that of the space: the first, with nothing to compare with, goes on
    more = {"base": base, "space": space, "scheduler": scheduler, "workers": each, "seed": seed}
    config.write_text(yaml.safe_dump(more))
    run = tmp_path / "run"
    command = start(run, f"--config={config}")
    wait_until(lambda: any(line["event"] == "stopped" for line in events(run)), command, run)
    labelling, first, second = (workers(run)[begin : begin + 2] for begin in (0, 2, 4))
    assert len({*labelling, *first, *second}) == 6
    wait_until(lambda: not any(process.exists() for process in second), command, run)
    good, poor, broken = finish(command, run)["search"]["trials"]
    assert (good["status"], poor["status"]) == ("finished", "stopped")
    assert 0 < poor["steps"] < good["steps"] == 200
    assert broken["status"] == "failed"
    assert "lower optimizer.lr" in broken["reason"]
    assert json.loads((run / "trials" / "0000" / "summary.json").read_text())["processes"] == 2


@slow
def test_optuna_looks_for_small_students_on_a_cluster(tmp_path, tiny_search, start):
    """Its candidates are measured while the search goes on; the recipe of the best is a run of task."""
    config = tmp_path / "search.yaml"
    space = {"student.words.size": {"low": 2, "high": 16}}
    more = {"search": "optuna", "trials": 2, "minimise": "parameters", "space": space}
    config.write_text(yaml.safe_dump({**tiny_search, **more}))
    run, again = tmp_path / "run", tmp_path / "again"
    found = finish(start(run, f"--config={config}", "--on=ray"), run)
    trials = found["search"]["trials"]
    assert [trial["status"] for trial in trials] == ["finished", "finished"]
    small, large = sorted(trials, key=lambda trial: trial["values"]["student.words.size"])
    assert small["parameters"] < large["parameters"]
    assert found["search"]["against"] == "parameters"
    assert small["name"] in found["search"]["front"]
    task = [sys.executable, "-m", "launcher.cli", "task", f"--config={run}/best.yaml", f"--run={again}"]
    task += [f"--teacher.outputs={run}/label/outputs"]
    subprocess.run(task, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    best = next(trial for trial in trials if trial["name"] == found["search"]["best"])
    assert json.loads((again / "summary.json").read_text())["best"]["accuracy"] == best["score"]


@slow
def test_a_population_hands_over_its_checkpoints(tmp_path, tiny_search, start):
    """The trial that can't learn goes on from the other's weights, with a rate of its own."""
    config = tmp_path / "search.yaml"
    # Long enough for both to be at work at once.
    prediction = {**tiny_search["base"]["prediction"], "epochs": 160, "evaluate_every": 100}
    record = {"save_every": 100, "log_every": 1}
    rate = "prediction.optimizer.lr"
    content = {
        "base": {**tiny_search["base"], "prediction": prediction, "record": record},
        "space": {rate: {"low": 1e-9, "high": 1e-2, "log": True}},
        "search": "random",
        "trials": 2,
        "seed": 45,  # which draws unlike rates
        "scheduler": {"name": "pbt", "grace": 0.025, "reduction": 2},
    }
    config.write_text(yaml.safe_dump(content))
    run = tmp_path / "run"
    first = start(run, f"--config={config}")
    wait_until(lambda: any(line["event"] == "changed" for line in events(run)), first, run)
    (driver,) = drivers(run)
    os.kill(driver, signal.SIGKILL)  # most often before the trial has taken over
    first.wait()
    found = finish(start(run, "--resume"), run)
    assert [trial["status"] for trial in found["search"]["trials"]] == ["finished", "finished"]
    change = next(line for line in events(run) if line["event"] == "changed")
    rates = {line["number"]: line["values"][rate] for line in events(run) if line["event"] == "begun"}
    assert rates[change["number"]] < rates[change["donor"]]
    own, given = (training(run / "trials" / f"{change[name]:04d}") for name in ("number", "donor"))
    assert list(own) == list(range(1, 4001))
    assert all(own[step]["lr"] == given[step]["lr"] for step in range(1, 101))
    last = [trial["values"][rate] for trial in found["search"]["trials"]]
    for number, value in enumerate(last):
        settings = from_yaml("task", (run / "trials" / f"{number:04d}" / "config.yaml").read_text())
        assert settings.prediction.optimizer.lr == value
    assert not list(run.glob("trials/*/stop/*"))


@slow
def test_slurms_warning_to_every_process_of_a_step(tmp_path, tiny_search, start):
    """Ray's too: they go on, the search stops as asked, and is continued."""
    config = tmp_path / "search.yaml"
    content = {
        **tiny_search,
        "space": {"prediction.optimizer.lr": [1e-3, 1e-2]},
        "workers": {"concurrent": 1},
    }
    config.write_text(yaml.safe_dump(content))
    run = tmp_path / "run"
    first = start(run, f"--config={config}")
    wait_until(lambda: any(line["event"] == "begun" for line in events(run)), first, run)
    wait_until(lambda: bool(workers(run)), first, run)
    for process in [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGUSR1)
    assert first.wait(timeout=SECONDS) == 75, (tmp_path / "log.txt").read_text()[-8000:]
    found = finish(start(run, "--resume"), run)
    assert [trial["status"] for trial in found["search"]["trials"]] == ["finished", "finished"]


def training(trial: Path) -> dict[int, dict[str, Any]]:
    """The lines of a trial's training, by step."""
    rows = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if row["split"] == "train"}
