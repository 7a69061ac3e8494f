"""Starting processes: what a killed one left behind stops no later one."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill import engine
from distill.engine import Engine
from distill.optimizers import build_optimizer
from distill.settings import EngineConfig, OptimizerConfig
from distill.whole_state import _share
from tests.processes import join_group_of_one


@pytest.fixture
def built(monkeypatch) -> list[list[Path]]:
    """The marks of builds in progress that each build found."""
    found: list[list[Path]] = []
    monkeypatch.setattr(engine, "build_shm_op", lambda: found.append([]))
    return found


def test_the_mark_of_a_killed_build_is_removed(tmp_path, built, monkeypatch):
    (tmp_path / "deepspeed_shm_comm").mkdir(parents=True)
    (tmp_path / "deepspeed_shm_comm" / "lock").touch()
    monkeypatch.setattr(engine, "build_shm_op", lambda: built.append(list(tmp_path.glob("*/lock"))))
    engine.load_communication(tmp_path)
    assert built == [[]]


def test_a_folder_that_takes_no_builds_is_told(tmp_path, built):
    (tmp_path / "home").touch()
    with pytest.raises(ValueError, match=r"home/\.cache, which can't be written .*TORCH_EXTENSIONS_DIR"):
        engine.load_communication(tmp_path / "home" / ".cache")
    assert built == []


def test_each_environment_builds_in_a_folder_of_its_own(monkeypatch):
    folder = engine.extensions_folder("/build")
    assert folder.parent == Path("/build")
    assert engine.extensions_folder(str(folder)) == folder  # a process started by another
    monkeypatch.setattr(sys, "prefix", "/another/.venv")
    assert engine.extensions_folder("/build") != folder


def test_tools_beside_this_python_come_first_and_once():
    path = engine.tools_first("/usr/bin")
    assert path.split(":") == [str(Path(sys.executable).parent), "/usr/bin"]
    assert engine.tools_first(path) == path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fp16_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="fp16 needs a GPU and there is none; give bf16"):
        engine.precision_name("fp16")


def _hold(root: Path, ready) -> None:
    engine.build_shm_op = lambda: (ready.set(), signal.pause())
    engine.load_communication(root)


def test_the_lock_of_a_killed_process_is_free(tmp_path, built):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(120)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    engine.load_communication(tmp_path)
    assert built == [[]]


class Small(torch.nn.Module):
    """Two layers, one of them large, whose loss is a square."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.out = torch.nn.Linear(16, 16), torch.nn.Linear(16, 1)
        torch.nn.init.normal_(self.wide.weight, std=0.5)

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        rows = rows.to(self.wide.weight.dtype)
        return {"loss": self.out(torch.tanh(self.wide(rows))).float().square().mean()}


def some_rows(step: int) -> Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("clip", [0.0, 0.1])
@pytest.mark.parametrize(
    ("name", "zero", "precision", "tolerance"),
    [
        ("adamw", 0, "fp32", 1e-5),
        ("adamw", 1, "fp32", 1e-5),
        ("adamw", 2, "fp32", 1e-5),
        ("adamw", 0, "bf16", 0.1),
        ("lamb", 0, "fp32", 1e-5),
        ("lamb", 0, "bf16", 0.1),
    ],
)
def test_steps_are_the_optimizers_own(name, zero, precision, tolerance, clip):
    """DeepSpeed adds no step and no decay of its own, whatever the stage and the precision; it clips."""
    join_group_of_one()
    config = OptimizerConfig(
        name=name, lr=0.02, weight_decay=0.1, clip=clip, eps=0.1
    )  # smooth in the gradient
    module, plain, start = Small(), Small(), Small().state_dict()
    ours = Engine(module, config, EngineConfig(zero=zero, precision=precision), 1, 8)
    optimizer = build_optimizer(plain, config)
    for step in range(3):
        ours.backward(ours.forward(some_rows(step))["loss"])
        ours.step(config.lr)
        optimizer.zero_grad()
        plain(some_rows(step))["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), clip or torch.inf)
        assert norm > clip
        optimizer.step()
    for key, expected in plain.state_dict().items():
        found = module.state_dict()[key].float()
        moved = (expected - start[key]).norm()
        rounding = 2**-8 * expected.norm() if precision == "bf16" else 0.0
        assert (found - expected).norm() <= tolerance * moved + rounding, key
    ours.close()


@pytest.mark.parametrize("zero", [0, 1])
def test_fp16_trains(monkeypatch, zero):
    """Gradients are scaled as often as they are divided by the scale."""
    join_group_of_one()
    monkeypatch.setattr(engine, "precision_name", lambda precision, name: precision)
    processor = type(engine.deepspeed.get_accelerator())
    monkeypatch.setattr(processor, "is_fp16_supported", lambda self: True)  # any CPU's is, slowly
    config = OptimizerConfig(lr=0.02, weight_decay=0.0, clip=0.0, eps=1e-8)
    states = []
    for precision in ("fp32", "fp16"):
        module = Small()
        ours = Engine(module, config, EngineConfig(zero=zero, precision=precision), 1, 8)
        for step in range(8):
            ours.backward(ours.forward(some_rows(step))["loss"])
            ours.step(config.lr)
        states.append(ours.snapshot()[0])
        ours.close()
    exact, half = states
    assert exact.keys() == half.keys()
    for name, expected in exact.items():
        assert (half[name].float() - expected.float()).norm() <= 0.05 * expected.float().norm() + 1e-6, name


def test_alone_steps_as_with_others():
    """One process leaves out the sum over processes, not what else it does: the same bits."""
    join_group_of_one()
    config = OptimizerConfig(lr=0.02, weight_decay=0.1, clip=0.5)
    states = []
    for alone in (True, False):
        module = Small()
        module.idle = torch.nn.Linear(16, 1)  # no part in the loss
        ours = Engine(module, config, EngineConfig(zero=0, precision="fp32"), 2, 8)
        assert ours.alone
        if not alone:
            ours.alone, ours.engine.enable_backward_allreduce = False, True
        start = module.idle.weight.detach().clone()
        for step in range(4):
            ours.backward(ours.forward(some_rows(step))["loss"])
            ours.step(config.lr)
        assert not torch.equal(module.idle.weight, start)
        states.append({key: tensor.clone() for key, tensor in module.state_dict().items()})
        ours.close()
    for key, expected in states[1].items():
        assert torch.equal(states[0][key], expected), key


def trained(ours: Engine, config: OptimizerConfig, steps: range) -> None:
    for step in steps:
        ours.backward(ours.forward(some_rows(step))["loss"])
        ours.step(config.lr)


FP32, BF16 = (0, "fp32"), (0, "bf16")


@pytest.mark.parametrize(
    ("name", "before", "after", "flat"),
    [
        ("adamw", FP32, FP32, False),
        ("bert_adam", FP32, FP32, False),
        ("lamb", FP32, FP32, False),
        ("adamw", BF16, BF16, False),
        ("adamw", BF16, BF16, True),
        ("lamb", BF16, BF16, False),
        ("adamw", (1, "bf16"), BF16, False),
        ("adamw", BF16, (1, "bf16"), True),
        ("adamw", FP32, (3, "fp32"), False),
        ("adamw", (3, "fp32"), (2, "fp32"), False),
        ("adamw", (2, "fp32"), FP32, False),
    ],
)
def test_an_engine_goes_on_from_a_snapshot(monkeypatch, name, before, after, flat):
    """Weights in full precision, moments and updates, in whatever way each keeps them: the same bits."""
    if flat:  # as DeepSpeed does with apex's FusedAdam on a GPU: a group's weights in one tensor
        monkeypatch.setattr("deepspeed.runtime.engine.FusedAdam", torch.optim.AdamW)
    join_group_of_one()
    config = OptimizerConfig(name=name, lr=0.02, weight_decay=0.1, clip=0.5)
    first, second = (
        Engine(Small(), config, EngineConfig(zero=zero, precision=precision), 1, 8)
        for zero, precision in (before, after)
    )
    assert hasattr(first.optimizer, "fp32_groups_flat") is flat
    trained(first, config, range(3))
    tensors, numbers = first.snapshot()
    assert numbers["updates"] == (0 if name == "bert_adam" else 3)
    second.load({key: tensor.clone() for key, tensor in tensors.items()}, numbers)
    ends = []
    for ours in (first, second):
        trained(ours, config, range(3, 5))
        ends.append({key: tensor.clone() for key, tensor in ours.snapshot()[0].items()})
        ours.close()
    assert ends[0].keys() == ends[1].keys()
    for key, expected in ends[0].items():
        assert torch.equal(ends[1][key], expected), key


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_shares_of_zero_3_make_the_whole(monkeypatch, ranks):
    """Each of a size, the last filled up."""
    value = torch.arange(1.0, 8).view(7, 1)
    own = torch.empty(-(-7 // ranks))
    shares = []
    for number in range(ranks):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda number=number: number)
        shares.append(_share(value, own))
    assert {len(share) for share in shares} == {len(own)}
    whole = torch.cat(shares)
    assert torch.equal(whole[:7], value.flatten())
    assert not whole[7:].any()
