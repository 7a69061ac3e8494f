"""What a run costs, over stops and kills."""

import subprocess
import sys
from pathlib import Path

import pytest

from distill.legs import FILE, leg, read, spent
from distill.report import ReportConfig
from distill.report import run as report

ROOT = Path(__file__).parents[2]
# Works until its first beat has been written, and a little of it after; then it is gone.
KILLED = """
import os, signal, sys
from pathlib import Path
from distill.legs import leg, read
folder = Path(sys.argv[1])
with leg(folder, 3):
    while not read(folder)[-1]["cpu_s"]:
        sum(range(10000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_leg_that_is_killed_counts_to_its_last_beat(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, check=False)
    assert killed.returncode == -9
    (first,) = read(tmp_path)
    assert first["wall_s"] >= 0.1
    assert first["processes"] == 3
    with leg(tmp_path, 1):
        sum(range(10**6))
    before, last = read(tmp_path)
    assert before == first
    assert last["processes"] == 1
    assert last["cpu_s"] > 0
    assert spent(tmp_path)["wall_s"] == round(first["wall_s"] + last["wall_s"], 2)
    assert spent(tmp_path)["cpu_hours"] == round((first["cpu_s"] + last["cpu_s"]) / 3600, 4)


def test_every_process_counts(tmp_path, monkeypatch):
    """As this one does, whose time is told."""
    seconds = iter([10.0])
    monkeypatch.setattr("distill.legs._cpu_seconds", lambda: next(seconds, 14.0))
    with leg(tmp_path, 3):
        pass
    assert [one["cpu_s"] for one in read(tmp_path)] == [12.0]


def test_a_leg_that_fails_counts_too(tmp_path):
    with pytest.raises(KeyboardInterrupt), leg(tmp_path, 1):
        raise KeyboardInterrupt
    assert len(read(tmp_path)) == 1


def test_gpus_count_by_the_hours_of_each_leg(tmp_path):
    figures = '"started": "2026-01-01T00:00:00+00:00", "cpu_s": 1, "processes": 2'
    (tmp_path / FILE).write_text(
        f'[{{{figures}, "wall_s": 3600, "gpus": 2}}, {{{figures}, "wall_s": 7200, "gpus": 4}}]'
    )
    assert spent(tmp_path) == {"wall_s": 10800, "cpu_hours": 0.0006, "gpu_hours": 10.0}


def test_a_run_without_legs_has_spent_nothing_that_is_known(tmp_path):
    assert spent(tmp_path) == {}


@pytest.mark.parametrize("text", ["", "{}x", "[1]", '[{"wall_s": "1"}]', '{"a": 1}'])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match=f"{tmp_path}/legs.json"):
        spent(tmp_path)


def test_the_report_of_an_unfinished_run_tells_its_cost(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / FILE).write_text(
        '[{"started": "", "wall_s": 90, "cpu_s": 7200, "processes": 1, "gpus": 0}]'
    )
    report(ReportConfig([str(tmp_path)]))
    page = (tmp_path / "report.html").read_text()
    assert "1 min 30 s" in page
    assert "2.00" in page
