"""Long work tells how it gets on, in the way that was asked for."""

import io
import json
import os
import sys

import pytest

from data_pipeline import progress
from data_pipeline.progress import Progress, tracked
from launcher import cli


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def work(clock, seconds=20.0, total=4, start=1):
    with Progress("task", total, start) as shown:
        for _ in range(start, 3):
            clock[0] += seconds
            shown.describe("loss 0.5  9 seq/s", {"loss": 0.5, "sequences_per_s": 9})
            shown.advance()


@pytest.mark.parametrize("mode", ["auto", "lines", ""])
def test_a_log_gets_lines(clock, capsys, monkeypatch, mode):
    monkeypatch.setenv("DISTILLERY_PROGRESS", mode)
    work(clock)
    assert capsys.readouterr().err.splitlines() == [
        "task: step 2/4, 0:40 left  loss 0.5  9 seq/s",
        "task: step 3/4, 0:20 left  loss 0.5  9 seq/s",
    ]


def test_lines_are_some_seconds_apart(clock, capsys):
    work(clock, seconds=5.0)
    assert capsys.readouterr().err == "task: step 3/4, 0:05 left  loss 0.5  9 seq/s\n"  # the last


def test_json_has_the_figures_by_name(clock, capsys, monkeypatch):
    monkeypatch.setenv("DISTILLERY_PROGRESS", "json")
    work(clock)
    first = json.loads(capsys.readouterr().err.splitlines()[0])
    assert first == {
        "progress": "task",
        "unit": "step",
        "done": 2,
        "total": 4,
        "seconds_left": 40,
        "loss": 0.5,
        "sequences_per_s": 9,
    }


def test_nothing_is_said_where_that_was_asked_for(clock, capsys, monkeypatch):
    monkeypatch.setenv("DISTILLERY_PROGRESS", "none")
    work(clock)
    assert capsys.readouterr().err == ""


def test_a_total_that_is_not_known_has_no_time_left(clock, capsys, monkeypatch):
    work(clock, total=0)
    assert capsys.readouterr().err.splitlines()[0] == "task: step 2  loss 0.5  9 seq/s"
    monkeypatch.setenv("DISTILLERY_PROGRESS", "json")
    work(clock, total=0)
    assert json.loads(capsys.readouterr().err.splitlines()[0])["seconds_left"] is None


def test_a_terminal_gets_a_bar(clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    work(clock)
    assert "━" in sys.stderr.getvalue()
    assert "3/4" in sys.stderr.getvalue()


def test_things_are_told_one_by_one(clock, capsys):
    seen = []
    for thing in tracked(["a", "b"], "blocks", "block"):
        clock[0] += 20
        seen.append(thing)
    assert seen == ["a", "b"]
    assert capsys.readouterr().err.splitlines()[0] == "blocks: block 1/2, 0:20 left  "


def test_another_way_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("DISTILLERY_PROGRESS", "loud")
    with pytest.raises(ValueError, match="DISTILLERY_PROGRESS: loud; give one of auto, lines, json, none"):
        Progress("task", 1)
    assert cli.main(["vocabulary", "--dry-run"]) == 2  # before anything begins
    assert "DISTILLERY_PROGRESS: loud" in capsys.readouterr().err


def test_the_command_passes_it_on_to_its_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DISTILLERY_PROGRESS", "auto")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("One sentence.\nTwo.\n\nThree.\n" * 50)
    words = [f"--corpus.files=[{corpus}]", "--size=60", f"--run={tmp_path / 'run'}", "--dry-run"]
    assert cli.main(["vocabulary", *words, "--progress=json"]) == 0
    assert os.environ["DISTILLERY_PROGRESS"] == "json"
    assert cli.main(["vocabulary", *words, "--progress=json", "--on=slurm"]) == 2
    assert "--progress is for --on local" in capsys.readouterr().err
