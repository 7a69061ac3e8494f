"""The benchmark of faults sees what is lost, repeated and wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import faults


def a_run(folder: Path, losses: list[float], weight: float) -> Path:
    (folder / "student").mkdir(parents=True)
    save_file({"w": np.full(3, weight, dtype=np.float32)}, folder / "student" / "model.safetensors")
    rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
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


def test_a_run_without_a_student_is_wrong(tmp_path):
    (tmp_path / "cut").mkdir()
    assert faults.compared(a_run(tmp_path / "whole", [1.0], 1.0), tmp_path / "cut")["wrong"]


def test_runs_that_no_fault_befell_are_not_counted():
    row = {"fault": "rank killed", "at": 3, "recovered": True, "lost": 1, "repeated": 2, "wrong": True}
    rows = [{**row, "injected": True, "same_bits": False}, {**row, "injected": False, "same_bits": True}]
    assert faults.summarise(rows) == {
        "runs": 2, "injected": 1, "recovered": 1, "lost": 1, "repeated": 2, "wrong": 1, "same_bits": 0
    }  # fmt: skip


def test_a_half_written_line_of_metrics_is_no_step(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    assert faults.metrics(tmp_path) == [{"step": 1}]
