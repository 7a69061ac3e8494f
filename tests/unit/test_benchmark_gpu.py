"""The GPU benchmark's parts at a tiny size on any device: both forms agree, figures are whole."""

import os
from unittest import mock

import pytest
import torch

from benchmarks import gpu, step
from benchmarks.gpu import Ceilings

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []
SHAPES = {"teacher": step.Shape(4, 32, 4, 64), "student": step.Shape(2, 24, 4, 48)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "benchmarks.gpu needs a GPU; benchmarks.step measures on a CPU\n"


@pytest.mark.parametrize("name", ["attention_score", "relation"])
def test_both_forms_are_the_same_loss(name):
    kernel, sides = gpu.kernels()[name], gpu.inputs(1, 16, DEVICE)
    sides = [side.detach().float() if side.is_floating_point() else side for side in sides]
    torch.testing.assert_close(kernel.fused(*sides), kernel.unfused(*sides), rtol=1e-4, atol=1e-3)


def once(function) -> float:
    """Call it; pretend that it took two seconds."""
    function()
    return 2.0


@pytest.mark.slow
def test_every_kernel_is_measured_at_every_length(monkeypatch):
    monkeypatch.setattr(gpu, "timed", once)
    figures = gpu.measure_kernels(DEVICE, Ceilings(1e9, 1e9), tokens=16, lengths=(8, 16))
    assert {name.rpartition("_of_floor")[0] for name in figures if name.endswith("_of_floor")} == {
        f"{kernel}_{length}" for kernel in gpu.kernels() for length in (8, 16)
    }
    assert all(figures[name] == 1.0 for name in figures if name.endswith("_speedup"))


def test_a_floor_is_the_slower_of_reading_and_computing():
    ceilings = Ceilings(flops=100.0, bandwidth=10.0)
    assert ceilings.floor(flops=1000.0, bytes_moved=1.0) == 10.0
    assert ceilings.floor(flops=1.0, bytes_moved=1000.0) == 100.0


def test_a_sequence_costs_what_the_trainer_counts(tmp_path):
    settings = step.Settings(batch=2, length=16, vocabulary=100, **SHAPES)
    step.save_teacher(tmp_path / "teacher", settings)
    with mock.patch.dict(os.environ):
        trainer = step.build_trainer(settings, tmp_path)
    counted = trainer.cost.flops(1, settings.length, settings.length**2)
    trainer.engine.close()
    assert gpu.model_flops(settings) == counted


@pytest.mark.slow
def test_ours_and_eager_steps_are_measured_and_shown(monkeypatch, capsys):
    settings = step.Settings(rounds=1, batch=2, length=16, vocabulary=100, **SHAPES)
    figures, samples = gpu.measure_step("tiny", settings, Ceilings(1e12, 1e9))
    assert figures["tiny_speedup_over_eager"] > 0
    assert 0 < figures["tiny_of_ceiling"] < 1
    assert samples.keys() == {"tiny_ours_seconds", "tiny_eager_seconds"}
    monkeypatch.setattr(gpu, "SHAPES", {"tiny": SHAPES["student"]})
    gpu.show(figures, Ceilings(1e12, 1e9))
    assert "of the bf16 ceiling" in capsys.readouterr().out
