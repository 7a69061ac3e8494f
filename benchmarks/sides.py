"""Two programs measured in turns, each in a process of its own, so that its peak memory is its own.

A side is a generator function: what it yields first says that it is ready, every next ends a step.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

from benchmarks.record import memory_mb, take_turns
from launcher.local import environment

Steps = Callable[[], Iterator[None]]


def measure(sides: Mapping[str, Steps], rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Run every side in turns; returns the seconds of its steps, and memory in MB by figure.

    `sides` are functions that another process can import (partials too); `ours` and `ours_...` run in the
    environment that `distillery` gives its processes.
    """
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ))  # put back in the end
        running: dict[str, _Side] = {}
        for name, steps in sides.items():
            if name.startswith("ours"):
                os.environ.update(environment(1, dict(os.environ)))
            running[name] = _Side(name, steps, stack)
        turns = {name: side.step for name, side in running.items()}
        take_turns(turns, rounds=1)  # warms up
        seconds = take_turns(turns, rounds)
        memory = {f"{name}_{key}": mb for name, side in running.items() for key, mb in side.end().items()}
    return {f"{name}_seconds": values for name, values in seconds.items()}, memory


class _Side:
    """A process that makes one step whenever it is told to; it ends when `stack` closes."""

    def __init__(self, name: str, steps: Steps, stack: ExitStack):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, remote = context.Pipe()
        self.process = context.Process(target=_serve, args=(remote, steps), daemon=True)
        self.process.start()
        stack.callback(self.stop)
        remote.close()
        self._answer()  # it is ready

    def step(self) -> float:
        """Make one step; returns its seconds."""
        return self._ask("step")

    def end(self) -> dict[str, float]:
        """Let the process end; returns its memory in MB."""
        return self._ask("end")

    def stop(self) -> None:
        """End the process, whatever it is at."""
        self.process.terminate()
        self.process.join()

    def _ask(self, message: str) -> Any:
        self.pipe.send(message)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(f"{self.name}: its process ended, exit {self.process.exitcode}") from None
        if isinstance(answer, str):  # a traceback
            raise RuntimeError(f"{self.name}:\n{answer}")
        return answer


def _serve(pipe: Connection, steps: Steps) -> None:
    os.dup2(2, 1)  # the parent alone prints
    try:
        side = steps()
        next(side)
        before = _resident_mb("VmRSS")
        pipe.send(True)
        while pipe.recv() == "step":
            begin = time.perf_counter()
            next(side)
            pipe.send(time.perf_counter() - begin)
        peak = _resident_mb("VmHWM")
        pipe.send({"peak_mb": peak, "growth_mb": peak - before})
    except Exception:
        pipe.send(traceback.format_exc())


def in_own_process(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function whose memory is to go when it is done. Raises RuntimeError where it fails."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__name__}: its process ended, exit {process.exitcode}")


def _resident_mb(field_name: str) -> float:
    """On a GPU its memory, which is the scarce one; else the process's."""
    import torch

    if not torch.cuda.is_available():
        return memory_mb(field_name)
    peak = field_name == "VmHWM"
    reserved = torch.cuda.max_memory_reserved() if peak else torch.cuda.memory_reserved()
    return reserved / 2**20


def synchronise() -> None:
    """Wait for the GPU where there is one: a step ends when its work does."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object]) -> float:
    """How long a call takes, its work on the GPU included."""
    synchronise()
    begin = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - begin
