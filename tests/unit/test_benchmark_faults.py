"""The benchmark of faults sees what is lost, repeated and wrong."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import bad_machine, faults
from data_pipeline.whole import to_disk


def a_run(folder: Path, losses: list[float], weight: float) -> Path:
    (folder / "student").mkdir(parents=True)
    save_file({"w": np.full(3, weight, dtype=np.float32)}, folder / "student" / "model.safetensors")
    rows = [{"step": step, "loss": loss, "rows_digest": f"{step:x}"} for step, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("losses", "weight", "wrong", "same"),
    [
        ([1.0, 2.0], 1.0, False, True),
        ([1.0, 2.0 + 1e-8], 1.0, False, False),
        ([1.0, 2.1], 1.0, True, False),
        ([1.0], 1.0, True, False),
        ([1.0, 2.0], 1.001, True, False),
    ],
)
def test_other_weights_or_losses_are_wrong(tmp_path, losses, weight, wrong, same):
    whole, cut = a_run(tmp_path / "whole", [1.0, 2.0], 1.0), a_run(tmp_path / "cut", losses, weight)
    assert faults.compared(whole, cut) == {"wrong": wrong, "same_bits": same}


def test_other_samples_are_wrong(tmp_path):
    whole, cut = a_run(tmp_path / "whole", [1.0, 2.0], 1.0), a_run(tmp_path / "cut", [1.0, 2.0], 1.0)
    text = (cut / "metrics.jsonl").read_text()
    (cut / "metrics.jsonl").write_text(text.replace('"rows_digest": "2"', '"rows_digest": "1"'))
    assert faults.compared(whole, cut) == {"wrong": True, "same_bits": True}


def test_a_run_without_a_student_is_wrong(tmp_path):
    (tmp_path / "cut").mkdir()
    assert faults.compared(a_run(tmp_path / "whole", [1.0], 1.0), tmp_path / "cut")["wrong"]


def test_runs_that_no_fault_befell_are_not_counted():
    row = {"at": 3, "recovered": True, "resumes": 3, "lost": 1, "repeated": 2, "wrong": True}
    rows = [{**row, "injected": True, "same_bits": False}, {**row, "injected": False, "same_bits": True}]
    assert faults.summarise(rows) == {
        "runs": 2, "injected": 1, "recovered": 1, "resumes": 3,
        "lost": 1, "repeated": 2, "wrong": 1, "same_bits": 0,
    }  # fmt: skip


# A run that makes 60 steps, unless it is disturbed: then it breaks at step 3, by itself, and for good.
LAUNCHER = """
import sys
from pathlib import Path
run = Path(sys.argv[-1].removeprefix("--run="))
run.mkdir(exist_ok=True)
steps = 60 if run.name == "whole" else 3
with (run / "metrics.jsonl").open("a") as metrics:
    for step in range(steps):
        print(f'{{"step": {step + 1}, "time": {step}}}', file=metrics)
sys.exit(steps == 3)
"""


def test_a_run_that_breaks_by_itself_fails_the_benchmark(monkeypatch, capsys):
    monkeypatch.setattr(faults, "COMMAND", [sys.executable, "-c", LAUNCHER])
    monkeypatch.setattr(faults, "make_input", lambda folder, steps: [])
    monkeypatch.setattr(faults, "FAULTS", {"all killed": faults.kill_all})
    monkeypatch.setattr(faults, "ATTEMPTS", 1)
    assert faults.main(["--runs", "1"]) == 1
    assert "1 of 1 runs did not end as the undisturbed one; a fault befell 0" in capsys.readouterr().err


SOUND = {"recovered": True, "lost": 0, "repeated": 0, "wrong": False}


@pytest.mark.parametrize(
    "change", [{"recovered": False}, {"lost": 1}, {"repeated": 2}, {"wrong": True}], ids=str
)
def test_a_run_is_sound_that_is_recovered_whole_and_right(change):
    assert faults.sound(SOUND)
    assert not faults.sound(SOUND | change)


def test_a_half_written_line_of_metrics_is_no_step(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    assert faults.metrics(tmp_path) == [{"step": 1}]
    assert faults.steps_done(tmp_path) == 1


def test_faults_that_a_machine_does_not_allow_are_left_out_and_told(tmp_path, capsys):
    refused = subprocess.CalledProcessError(32, "mount", "", "mount: only root\ncan do that")
    with patch.object(faults, "own_disk", side_effect=refused):
        kinds = faults.possible(tmp_path)
    assert kinds == [kind for kind in faults.FAULTS if kind != "disk read-only"]
    assert capsys.readouterr().err == "left out: disk read-only (mount: only root can do that)\n"


def test_a_compiler_that_is_missing_is_no_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "clock jumps" not in faults.possible(tmp_path)
    assert "left out: clock jumps (" in capsys.readouterr().err


def test_a_compiler_of_several_words_makes_the_clock(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "env c++")
    bad_machine.jumping_clock(tmp_path / "run")
    assert (tmp_path / "run.so").is_file()


CLOCKS = """
import threading, time
while input():
    now, monotonic = time.time(), time.monotonic()
    time.sleep(0.01)
    lock = threading.Lock()
    lock.acquire()
    assert not lock.acquire(timeout=0.01)
    assert not threading.Event().wait(0.01)
    print(now, monotonic, time.time() - now, flush=True)
"""


@pytest.mark.parametrize("seed", range(4))
def test_the_time_of_day_jumps_and_nothing_else(tmp_path, seed):
    command = [*bad_machine.jumping_clock(tmp_path / "run"), sys.executable, "-c", CLOCKS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def off() -> tuple[float, float]:
            process.stdin.write("go\n")
            process.stdin.flush()
            now, monotonic, waited = map(float, process.stdout.readline().split())
            assert waited < 60  # a wait until a time of day would last as long as the jump
            return now - time.time(), monotonic - time.monotonic()

        before = off()
        bad_machine.jump(Mock(), tmp_path / "run", random.Random(seed))
        after = off()
        process.stdin.write("\n")
    assert abs(before[0]) < 30
    assert abs(after[0]) > 30
    assert abs(after[1] - before[1]) < 30


@pytest.mark.parametrize(
    ("finished", "seen"), [("13:00:09", False), ("12:02:09", True), ("14:30:09", True)]
)
def test_a_jump_that_a_run_saw_is_in_its_dates(tmp_path, finished, seen):
    assert bad_machine.jumped(tmp_path)  # it may be why the run has no end
    summary = {"finished": f"2026-01-02T{finished}+00:00", "wall_s": 10.0}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "legs.json").write_text(json.dumps([{"started": "2026-01-02T13:00:00+00:00"}]))
    assert bad_machine.jumped(tmp_path) is seen


def test_a_disk_that_fails_takes_what_was_not_yet_on_it(tmp_path):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(faults, "FAULTS", {"disk read-only": faults.FAULTS["disk read-only"]})
        if not faults.possible(tmp_path):
            pytest.skip("no file system can be mounted here")
    with bad_machine.own_disk(tmp_path / "run"):
        kept, lost = tmp_path / "run" / "kept", tmp_path / "run" / "lost"
        kept.write_text("on the disk")
        to_disk(kept)
        with lost.open("wb", buffering=0) as file:
            file.write(b"in memory")
            bad_machine.make_read_only(Mock(), tmp_path / "run", random.Random(0))
            with pytest.raises(OSError, match="Read-only"):
                file.write(b"more")
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "run" / "new").write_text("")
        bad_machine.mend(tmp_path / "run")
        assert kept.read_text() == "on the disk"
        assert not lost.exists() or not lost.read_bytes()
        (tmp_path / "run" / "new").write_text("")
