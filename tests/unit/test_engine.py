"""Starting processes: what a killed one left behind stops no later one."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from distill import engine


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
