"""The place `local`: this machine, one process or several under torchrun."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from distill.preemption import EXIT_CODE
from launcher.settings import Launch

STANDALONE = ("--standalone",)


def describe(job: str, launch: Launch, processes: int) -> str:
    """What `start` runs, for --dry-run."""
    return shlex.join(command(job, launch.run, processes))


def start(job: str, launch: Launch, processes: int) -> int:
    """Run the job to its end; returns the exit code."""
    return run_processes(job, launch.run, processes)


def processes(launch: Launch) -> int:
    """Processes on this machine."""
    return launch.processes or default_processes()


def command(job: str, folder: str, processes: int, rendezvous: Sequence[str] = STANDALONE) -> list[str]:
    """The command that runs a job's processes on a machine; a pure function of its arguments."""
    rank = ["-m", "launcher.rank", job, folder]
    if processes == 1 and rendezvous == STANDALONE:
        return [sys.executable, *rank]
    torchrun = ["-m", "torch.distributed.run", *rendezvous, "--nproc-per-node", str(processes)]
    return [sys.executable, *torchrun, *rank]


# Waiting threads sleep: by default they spin, and two jobs on one machine slow each other manifold.
WAIT = {"OMP_WAIT_POLICY": "PASSIVE"}
# glibc gives large blocks back to the system and faults their pages in anew at every use: keep them.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}


def environment(processes: int, base: dict[str, str]) -> dict[str, str]:
    """The processes' environment: threads shared out, memory kept."""
    threads = max(1, cores(base) // processes)
    return {"OMP_NUM_THREADS": str(threads), **WAIT, **MALLOC, **base}


def cores(environment: Mapping[str, str]) -> int:
    """CPUs that are ours: Slurm's grant may be less than what the machine would let us use."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(own, int(environment.get("SLURM_CPUS_PER_TASK", own)))


def default_processes() -> int:
    """One process for each GPU that this user may use, or one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return max(1, len([gpu for gpu in visible.split(",") if gpu.strip()]))
    cards = Path("/proc/driver/nvidia/gpus")
    return max(1, len(list(cards.iterdir()))) if cards.is_dir() else 1


def run_processes(job: str, folder: str, processes: int, rendezvous: Sequence[str] = STANDALONE) -> int:
    """Run this machine's processes of a job to their end; returns the exit code.

    SIGTERM and SIGUSR1 go on to the ranks, which write a checkpoint and stop; the code is then EXIT_CODE.
    """
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: asked.set())
    with tempfile.TemporaryDirectory() as scratch:
        stopped = Path(scratch, "stopped")  # made by a rank that stopped: torchrun hides its exit code
        words = environment(processes, {**os.environ, "DISTILLERY_STOPPED": str(stopped)})
        child = subprocess.Popen(
            command(job, folder, processes, rendezvous), env=words, preexec_fn=_ignore_warnings
        )
        threading.Thread(target=_pass_on, args=(asked, child), daemon=True).start()
        while True:
            try:
                code = child.wait()
            except KeyboardInterrupt:
                continue  # the processes got it too, and end by themselves
            # A rank that fails makes torchrun ask the others to stop: that was nobody's wish.
            return EXIT_CODE if stopped.exists() and (asked.is_set() or code == 0) else code


def _ignore_warnings() -> None:
    """Slurm signals every process of a step: torchrun, and a rank that does not listen yet, would die."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _pass_on(asked: threading.Event, child: subprocess.Popen) -> None:
    """Once asked to stop, tell the ranks, torchrun's children, as soon as they listen.

    torchrun itself would give them 30 s only.
    """
    asked.wait()
    told: set[int] = set()
    if not Path("/proc/self/status").is_file():  # no Linux
        child.terminate()
    while child.poll() is None:
        for process in {child.pid, *_children(child.pid)} - told:
            if _is_listening_rank(process):
                os.kill(process, signal.SIGUSR1)
                told.add(process)
        threading.Event().wait(0.2)


def _children(process: int) -> list[int]:
    """A process's own children."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [int(number) for path in lists for number in _text(path).split()]


def _is_listening_rank(process: int) -> bool:
    """Whether a process is a rank that catches SIGUSR1."""
    caught = [line for line in _text(Path(f"/proc/{process}/status")).splitlines() if "SigCgt" in line]
    mask = int(caught[0].split()[1], 16) if caught else 0
    rank = "launcher.rank" in _text(Path(f"/proc/{process}/cmdline")).split("\0")
    return rank and bool(mask >> (signal.SIGUSR1 - 1) & 1)


def _text(path: Path) -> str:
    """A file of /proc; empty where its process has ended."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
