"""The place `local`: this machine, one process or several under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def command(job: str, folder: str, processes: int) -> list[str]:
    """The command that runs a job's processes; a pure function of its arguments."""
    rank = ["-m", "launcher.rank", job, folder]
    if processes == 1:
        return [sys.executable, *rank]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *torchrun, *rank]


# Waiting threads sleep: by default they spin, and two jobs on one machine slow each other manifold.
WAIT = {"OMP_WAIT_POLICY": "PASSIVE"}
# glibc gives large blocks back to the system and faults their pages in anew at every use: keep them.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}


def environment(processes: int, base: dict[str, str]) -> dict[str, str]:
    """The processes' environment: threads shared out, memory kept, tools beside this Python on PATH."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    tools = str(Path(sys.executable).parent)  # DeepSpeed looks for ninja there
    path = f"{tools}{os.pathsep}{base.get('PATH', '')}"
    return {"OMP_NUM_THREADS": str(threads), **WAIT, **MALLOC, **base, "PATH": path}


def default_processes() -> int:
    """One process for each GPU that this user may use, or one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return max(1, len([gpu for gpu in visible.split(",") if gpu.strip()]))
    cards = Path("/proc/driver/nvidia/gpus")
    return max(1, len(list(cards.iterdir()))) if cards.is_dir() else 1


def start(job: str, folder: str, processes: int) -> int:
    """Run the job to its end; returns the exit code."""
    child = subprocess.Popen(command(job, folder, processes), env=environment(processes, dict(os.environ)))
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue  # the processes got it too, and end by themselves
