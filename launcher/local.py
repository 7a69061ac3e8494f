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
from contextlib import suppress
from itertools import product
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType

from data_pipeline.settings import usable_cores
from data_pipeline.signals import signals_held
from distill import preemption
from distill.preemption import INTERRUPTED
from launcher.jobs import JOBS
from launcher.settings import Launch

# The ranks of one machine meet by a private file (and then on the loopback: distill/engine.py): torchrun
# unpickles what it meets by, and would meet at a port that is open to the network. Signs of life are rare,
# for the file grows with each.
STANDALONE = (
    "--rdzv-backend=c10d",
    "--rdzv-conf=store_type=file,keep_alive_interval=3600",
    "--local-addr=127.0.0.1",
)


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
    if processes == 1 and set(STANDALONE) <= set(rendezvous):
        return [sys.executable, *rank]
    torchrun = ["-m", "launcher.torchrun", *rendezvous, "--nproc-per-node", str(processes)]
    return [sys.executable, *torchrun, *rank]


def resume_command(job: str, folder: str, processes: int) -> str:
    """The command that goes on with a run on this machine, over as many processes."""
    words = ["distillery", job, "--run", folder, "--resume"]
    if JOBS[job].parallel and {processes, default_processes()} != {1}:
        words += ["--processes", str(processes)]
    return shlex.join(words)


def how_to_resume(
    job: str, folder: str, processes: int, how: str = "continue from the last checkpoint"
) -> str:
    """What is said of a run that was stopped on this machine."""
    if not JOBS[job].resumes:
        how = f"{job} keeps nothing on the way; begin anew"
    return f"{how} with: {resume_command(job, folder, processes)}"


# Waiting threads spin for some tenths of a millisecond (5 % of a step), then sleep: by default they go on
# spinning, and two jobs on one machine slow each other manifold.
WAIT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "20000"}
# glibc gives large blocks back to the system and faults their pages in anew at every use: keep them.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
# torchrun opens no port for the ranks of one machine, whose own connections stay on it.
ALONE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
if Path("/sys/class/net/lo").exists():
    ALONE |= {"GLOO_SOCKET_IFNAME": "lo"}
# Set by some clusters, or by a torchrun above us, for a process group that is not our ranks'.
OTHERS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PET_NNODES"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE"),
)


def environment(processes: int, base: dict[str, str]) -> dict[str, str]:
    """The processes' environment: cores shared out as threads, memory kept, no other group's variables."""
    threads = max(1, cores(base) // processes)
    kept = {name: value for name, value in base.items() if name not in OTHERS}
    return {"OMP_NUM_THREADS": str(threads), **WAIT, **MALLOC, **kept}


def cores(environment: Mapping[str, str]) -> int:
    """CPUs that are ours: Slurm may have granted fewer than the machine lets us use."""
    own = usable_cores()
    return min(own, int(environment.get("SLURM_CPUS_PER_TASK", own)))


def default_processes() -> int:
    """One process for each GPU that this user may use, or one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return max(1, len([gpu for gpu in visible.split(",") if gpu.strip()]))
    cards = Path("/proc/driver/nvidia/gpus")
    return max(1, len(list(cards.iterdir()))) if cards.is_dir() else 1


def may_have_gpu() -> bool:
    """Whether a driver of NVIDIA or AMD, WSL's too, has left its mark; told without torch."""
    marks = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and any(Path(mark).exists() for mark in marks)


def run_processes(job: str, folder: str, processes: int, rendezvous: Sequence[str] = STANDALONE) -> int:
    """Run this machine's processes of a job to their end; returns the exit code.

    SIGTERM, SIGUSR1 and Ctrl-C go on to the ranks, which write a checkpoint and stop; the code is then
    preemption.exit_code's. A second Ctrl-C ends every process at once.
    """
    asked: list[int] = []
    news: SimpleQueue[None] = SimpleQueue()  # unlike an Event it may be told within a signal handler

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number not in asked and JOBS[job].steps:
            preemption.tell(preemption.STEP)  # not by a rank: it may be waiting for others
        asked.append(number)
        news.put(None)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # as in the background
            signal.signal(number, ask)
    with tempfile.TemporaryDirectory() as scratch:
        stopped = Path(scratch, "stopped")  # a rank that stopped makes it: torchrun hides its exit code
        variables = environment(
            processes,
            {**os.environ, "DISTILLERY_STOPPED": str(stopped), "DISTILLERY_REFUSED": f"{scratch}/refused"},
        )
        if rendezvous == STANDALONE:
            rendezvous = (*STANDALONE, f"--rdzv-endpoint={scratch}/rendezvous")
            variables |= ALONE
        rendezvous = (*rendezvous, f"--log-dir={scratch}")  # else torchrun leaves one behind
        # Slurm signals every process of a step, a terminal's Ctrl-C all in the foreground. A rank that
        # listens takes what has waited; torchrun never does (it would kill the ranks after 30 s), and its
        # ranks, outside the terminal, are told by us.
        with signals_held(*preemption.HELD):
            child = subprocess.Popen(
                command(job, folder, processes, rendezvous),
                env=variables,
                preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
            )
        threading.Thread(target=_pass_on, args=(asked, news, child), daemon=True).start()
        code = _exit_code(child)
        if code == -signal.SIGKILL and asked.count(signal.SIGINT) > 1:
            print(f"interrupted; {how_to_resume(job, folder, processes)}", file=sys.stderr)
            return INTERRUPTED
        # A rank that fails makes torchrun ask the others to stop: that was nobody's wish.
        if stopped.exists() and (asked or code == 0):
            return preemption.exit_code(signal.SIGINT in asked, JOBS[job].resumes)
        return code if code >= 0 else 128 - code  # of a signal, as a shell has it


def _exit_code(child: subprocess.Popen) -> int:
    """Wait for a child's end, a second at a time: a signal that arrives just before a wait may have its
    handler run only after it.
    """
    while True:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=1)


def _pass_on(asked: list[int], news: SimpleQueue[None], child: subprocess.Popen) -> None:
    """Once asked to stop, tell the ranks, torchrun's children, as soon as they listen.

    torchrun itself would give them 30 s only.
    """
    news.get()
    by_torchrun = "launcher.torchrun" in str(child.args)
    if not Path("/proc/self/status").is_file():  # not on Linux
        if signal.SIGINT not in asked or by_torchrun:
            child.terminate()
        return
    told: set[tuple[int, int]] = set()
    while child.poll() is None:
        # Not a rank's children: between fork and exec a compiler, say, looks like the rank.
        below = children(child.pid) if by_torchrun else [child.pid]
        ranks = [process for process in below if _is_listening_rank(process)]
        if asked.count(signal.SIGINT) > 1 and child.pid not in ranks:
            _end(child.pid)
        for rank, number in product(ranks, set(asked)):
            if (rank, number) not in told:
                interrupts = number == signal.SIGINT and not _is_of_our_group(rank)
                _send(rank, signal.SIGINT if interrupts else signal.SIGUSR1)
                told.add((rank, number))
        with suppress(Empty):
            news.get(timeout=0.2)


def _is_of_our_group(process: int) -> bool:
    """Whether a terminal's Ctrl-C reaches a process without us: ours would be its second, which ends it."""
    with suppress(ProcessLookupError):
        return os.getpgid(process) == os.getpgrp()
    return True


def _end(process: int) -> None:
    """Kill a process and all below it; stopped first, it neither starts others nor reports it."""
    _send(process, signal.SIGSTOP)
    for child in children(process):
        _end(child)
    _send(process, signal.SIGKILL)


def _send(process: int, number: int) -> None:
    """Signal a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(process, number)


def children(process: int) -> list[int]:
    """A process's own children."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [int(number) for path in lists for number in _text(path).split()]


def _is_listening_rank(process: int) -> bool:
    """Whether a process is a rank that catches SIGUSR1."""
    caught = [line for line in _text(Path(f"/proc/{process}/status")).splitlines() if "SigCgt" in line]
    mask = int(caught[0].split()[1], 16) if caught else 0
    return is_rank(process) and bool(mask >> (signal.SIGUSR1 - 1) & 1)


def is_rank(process: int) -> bool:
    """Whether a process is a rank, or a torchrun of ranks, whose command line names them too."""
    return "launcher.rank" in _text(Path(f"/proc/{process}/cmdline")).split("\0")


def _text(path: Path) -> str:
    """A file of /proc; empty where its process has ended."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
