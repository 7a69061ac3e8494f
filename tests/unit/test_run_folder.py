"""A run folder has one writer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distill.run_folder import Metrics, held
from launcher import cli, runs
from launcher.demo import DemoConfig

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from distill.run_folder import held
from launcher import cli, runs
from launcher.demo import DemoConfig
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_held_by_one_process_and_free_when_it_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {holder.pid} of "), held(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with held(tmp_path):
        pass


def test_a_second_run_in_a_folder_is_refused_at_start(tmp_path, capsys, monkeypatch):
    run = str(tmp_path / "run")
    runs.begin(tmp_path / "run", "demo", DemoConfig())
    monkeypatch.setattr(cli, "ENDING", 0.0)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, run], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert cli.main(["demo", "--run", run, "--resume"]) == 2
        assert cli.main(["status", run]) == 0
    finally:
        holder.kill()
        holder.wait()
    captured = capsys.readouterr()
    assert "is being written by another run" in captured.err
    assert f"at work, as process {holder.pid} of " in captured.out
    assert cli.main(["status", run]) == 0
    assert "ended without finishing" in capsys.readouterr().out


def test_a_line_of_metrics_without_its_end_does_not_run_into_the_next(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.append({"stage": "general", "step": 1})
    metrics.path.write_text(metrics.path.read_text().rstrip("\n"))  # where a full disk cut it
    metrics.rewind("general", 1)
    metrics.append({"stage": "general", "step": 2})
    assert [json.loads(line)["step"] for line in metrics.path.read_text().splitlines()] == [1, 2]


def test_a_resumed_run_counts_its_time_on_and_keeps_other_stages(tmp_path):
    metrics = Metrics(tmp_path)
    lines = [("first", 9, 10.0), ("second", 1, 20.0), ("second", 2, 30.0)]
    rows = [{"stage": stage, "step": step, "time": time} for stage, step, time in lines]
    metrics.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics.rewind("second", 1)
    metrics.append({"stage": "second", "step": 2})
    *kept, last = map(json.loads, metrics.path.read_text().splitlines())
    assert kept == rows[:2]
    assert last["time"] >= 20
