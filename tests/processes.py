"""Runs a plain function in several processes over gloo, as torchrun would, and returns their results.

A test hands `run_processes` a module-level function. Each process is forked from a server that has
imported what all need, and has nothing of the test's own process. Arguments travel as JSON, results
as tensors that are loaded without unpickling code.

Where one process is enough, `join_group_of_one` spares the start of another; `typed` runs a command.
"""

import importlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

ROOT = Path(__file__).parents[1]
DISTILLERY = str(Path(sys.executable).with_name("distillery"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
READY = multiprocessing.get_context("forkserver")
READY.set_forkserver_preload(["deepspeed", "distill.general", "distill.task"])


def run_processes(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` in `world_size` processes; returns what each rank's call returned.

    Raises RuntimeError with the traceback of the rank that failed; the others are ended.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "arguments.json").write_text(json.dumps(arguments))
        processes = [_start(function, group, folder) for group in _groups(world_size)]
        try:
            _wait(processes, folder)
        finally:
            for process in processes:
                process.kill()
                process.join()
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def join_group_of_one() -> None:
    """Make this very process a group. Its environment stays, for the commands that it starts.

    On one thread: models of tests are so small that a second one only waits.
    """
    torch.set_num_threads(1)
    if not torch.distributed.is_initialized():
        from distill.engine import start_processes

        with patch.dict(os.environ, _groups(1)[0]):
            start_processes()
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it whenever an engine is made


def run_here(job: str, config: Any, folder: Path, **more: Any) -> dict[str, Any]:
    """Run a job as the command does, in this process; returns its summary."""
    from launcher import jobs, runs
    from launcher.rank import execute

    join_group_of_one()
    jobs.check(job, config, 1)
    runs.begin(folder, job, config)
    return execute(job, config, folder, **more)


def typed(command: list[str], folder: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder to its end, which has this exit code."""
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def _groups(world_size: int) -> list[dict[str, str]]:
    """What tells each process of its group: torchrun's environment variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def of_a_process(path: Path) -> bytes:
    """What /proc says, nothing of a process that has ended."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _start(function: Callable[..., Any], group: dict[str, str], folder: Path) -> BaseProcess:
    environment = {**os.environ, **group, "OMP_NUM_THREADS": "1"}
    place = (function.__module__, function.__qualname__)
    process = READY.Process(target=_main, args=(*place, environment, str(folder)))
    with patch.dict(os.environ, OMP_NUM_THREADS="1"):  # the first starts the server, which loads torch
        process.start()
    return process


def _wait(processes: list[BaseProcess], folder: Path) -> None:
    running = processes
    while running:
        wait([process.sentinel for process in running])  # of none it would wait for ever
        running = [process for process in running if process.exitcode is None]
        for rank, process in enumerate(processes):
            if process.exitcode:
                log = (folder / f"{rank}.log").read_text(errors="replace")
                raise RuntimeError(f"rank {rank} ended with exit code {process.exitcode}:\n{log[-8000:]}")


def _main(module: str, name: str, environment: dict[str, str], folder: str) -> None:
    rank = environment["RANK"]
    with (Path(folder) / f"{rank}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    function = getattr(importlib.import_module(module), name)
    result = function(*json.loads((Path(folder) / "arguments.json").read_text()))
    torch.save(result, Path(folder) / f"{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
