"""The start-up benchmark: what it waits for, and what it makes of it."""

import os
import sys

import pytest

from benchmarks import startup
from launcher.settings import parse

RUN = """
import pathlib, sys, time
run = pathlib.Path(sys.argv[1])
time.sleep(0.2)
(run / "metrics.jsonl").write_text("{}")
time.sleep(0.2)
(run / "summary.json").write_text("{}")
"""


def test_the_first_step_is_timed_and_the_run_ends(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert startup.first_step([sys.executable, "-c", RUN, str(run)], run, {**os.environ}) >= 0.2
    assert (run / "summary.json").is_file()


def test_a_run_that_fails_is_no_measurement(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    with pytest.raises(RuntimeError, match="no such thing"):
        startup.first_step(command, tmp_path / "run", {**os.environ})


def test_a_submitted_run_that_never_ends_is_no_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "PATIENCE", 0)
    with pytest.raises(RuntimeError, match="pass"):
        startup.first_step([sys.executable, "-c", "pass"], tmp_path / "run", {**os.environ})


def test_figures_are_medians_and_what_is_beyond_the_ranks_alone():
    samples = {"alone": [4.0, 5.0, 9.0], "slurm": [8.0, 7.0, 6.0]}
    assert startup.summarise(samples) == {"alone_s": 5.0, "slurm_s": 7.0, "slurm_overhead_s": 2.0}


@pytest.mark.parametrize("place", startup.PLACES)
def test_every_place_takes_its_settings(place):
    data = ["--teacher.path=t", "--shards=s", "--stage.epochs=1"]
    _, launch = parse("general", [*startup.SETTINGS, *data, *startup.PLACES[place]])
    assert launch.on == place
    assert max(launch.processes, 1) * launch.nodes == 2
