"""The place `slurm`: submits slurm/train.sbatch, and asks after what was submitted."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from codecs import IncrementalDecoder, getincrementaldecoder
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from launcher import submitted
from launcher.jobs import JOBS
from launcher.settings import Launch

LOOK_EVERY = 10  # seconds from one question to the queue to the next: all users of a cluster share it
PATIENCE = 30  # questions in a row that may fail
SCRIPT = Path(__file__).parents[1] / "slurm" / "train.sbatch"
WARNING = 120  # seconds before a time limit at which SCRIPT lets itself be warned


def processes(launch: Launch) -> int:
    """Processes on each node. Raises ValueError where GPUs are asked for by --sbatch alone."""
    asked = [option for option in launch.sbatch if re.match(r"--gres=.*gpu|--gpus(-per-|=)|-G", option)]
    if asked and not (launch.processes or launch.gpus_per_node):
        raise ValueError(
            f"--sbatch: {asked[0]}: one process would run on each node; "
            "give --gpus-per-node in its place, or --processes beside it"
        )
    return launch.processes or launch.gpus_per_node or 1


def describe(job: str, launch: Launch, processes: int) -> str:
    """What `start` runs, for --dry-run."""
    _check(launch)
    return shlex.join(command(job, launch, processes))


def command(job: str, launch: Launch, processes: int) -> list[str]:
    """The command that submits a job; a pure function of its arguments.

    Over several nodes a pregeneration is an array of slices, each a job of one node.
    """
    run = str(Path(launch.run).absolute())
    slices = job == "pregenerate" and launch.nodes > 1
    log = "log-%a.txt" if slices else "log.txt"
    options = {
        "job-name": f"distillery-{job}",
        "nodes": "1" if slices else str(launch.nodes),
        "array": f"1-{launch.nodes}" if slices else "",
        "gpus-per-node": str(launch.gpus_per_node or ""),
        "cpus-per-task": str(launch.cpus_per_node or ""),
        "time": launch.time,
        "partition": launch.partition,
        "export": "" if any(option.startswith("--export") for option in launch.sbatch) else "ALL",
        "output": f"{run.replace('%', '%%')}/{log}",
    }
    lines = str(Path(launch.environment).absolute()) if launch.environment else ""
    variables = {"DISTILLERY_PYTHON": sys.executable, "DISTILLERY_ENVIRONMENT": lines}
    return [
        "env",
        *(f"{name}={value}" for name, value in variables.items() if value),
        "sbatch",
        "--parsable",
        *(f"--{name}={value}" for name, value in options.items() if value),
        *launch.sbatch,
        str(SCRIPT),
        job,
        f"--run={run}",
        *([f"--processes={processes}"] if JOBS[job].parallel else []),
    ]


def start(job: str, launch: Launch, processes: int) -> int:
    """Submit the job; returns 0 once it is in the queue. Raises ValueError where sbatch refuses it."""
    _check(launch)
    folder = Path(launch.run)
    if "\\" in str(folder.absolute()):
        raise ValueError(f"--run: {folder}: sbatch takes no log file with a backslash in its path")
    if shutil.which("sbatch") is None:
        raise ValueError("no sbatch here; --on slurm is for a cluster's login node")
    (folder / "error.txt").unlink(missing_ok=True)
    number = _ask(command(job, launch, processes)).split(";")[0].strip()
    submitted.write(folder, {"place": "slurm", "job": number, "run": str(folder.absolute())})
    print(f"submitted {folder} as job {number}; follow it with: distillery logs {shlex.quote(launch.run)}")
    return 0


def _check(launch: Launch) -> None:
    if not SCRIPT.is_file():
        raise ValueError(f"--on slurm: no {SCRIPT}; install Distillery by pip install -e from its folder")
    if launch.environment and not Path(launch.environment).is_file():
        raise ValueError(f"--environment: no file {launch.environment}")
    for option in launch.sbatch:
        if not option.startswith("-"):
            raise ValueError(
                f"--sbatch: {option} begins without -; give an option and its value as one item, and quote "
                """one with a comma: '["--exclude=n1,n2"]'"""
            )
        if re.match("--(ou|er)|-[oe]", option):
            raise ValueError(
                f"--sbatch: {option}: `distillery logs` shows the log in the run folder; leave it out"
            )
        if option.startswith("--export") and not re.match("--export=ALL(,|$)", option):
            raise ValueError(
                f"--sbatch: {option} would keep from the job what it is told by variables; begin it with "
                "--export=ALL, or unset yours in --environment's file"
            )
    _refuse_short_time(launch)


def _refuse_short_time(launch: Launch) -> None:
    """Refuse a time limit whose warning comes when a job has hardly begun, each time it begins anew."""
    setting, time, warning = "--time", launch.time, WARNING
    for option in launch.sbatch:
        if found := re.match(r"(?:--time=|-t ?)(.+)", option):
            setting, time = "--sbatch: the time limit", found[1]
        if found := re.match(r"--signal=[^@]+(?:@(\d+))?$", option):
            warning = int(found[1] or 60)
    if 0 < (limit := _time_limit(time)) <= warning:
        raise ValueError(
            f"{setting}: {time} is {limit} s to Slurm, and {warning} s before its limit a job is told to "
            "stop: this one when it has hardly begun; give some minutes more (an hour is 60 or 1:00:00)"
        )


def _time_limit(text: str) -> int:
    """The seconds of a time limit as sbatch takes it; 0 for none, and for what sbatch itself refuses."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", text)
    if not found:
        return 0
    parts = [int(part) for part in found[2].split(":")]
    if not found[1] and len(parts) < 3:
        parts.insert(0, 0)  # without days the first of two is minutes
    hours, minutes, seconds = [*parts, 0, 0][:3]
    minutes += 60 * (24 * int(found[1] or 0) + hours)
    return 60 * (minutes + -(-seconds // 60))  # rounded up to whole minutes


def state(record: dict[str, str]) -> tuple[str, str]:
    """What the queue says of a submitted job, and no last word: it forgets jobs that have ended."""
    command = ["squeue", "--noheader", "--jobs", record["job"], "--format=%i %T for %M on %D nodes %R"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise ValueError(f"squeue: {done.stderr.strip()}")
    return done.stdout.strip(), ""


def logs(record: dict[str, str], follow: bool) -> int:
    """Print what a submitted job has said; with `follow`, also what it says until it has ended.

    Raises ValueError where the queue can't be asked any more.
    """
    log, shown = record.get("log"), dict[Path, int]()
    utf8 = getincrementaldecoder("utf-8")  # keeps the half of a character that is still being written
    decoders = defaultdict[Path, IncrementalDecoder](lambda: utf8("replace"))
    looks = 0
    while True:
        if looks % LOOK_EVERY == 0:
            going_on = follow and _goes_on(record)
        for path in [Path(log)] if log else sorted(Path(record["run"]).glob("log*.txt")):
            with path.open("rb") as file:
                file.seek(shown.get(path, 0))
                print(decoders[path].decode(file.read()), end="", flush=True)
                shown[path] = file.tell()
        if not going_on:
            return 0
        time.sleep(1)
        looks += 1


def _goes_on(record: dict[str, str]) -> bool:
    """Whether the queue has a job; a controller that is busy or restarted gets some minutes."""
    for _ in range(PATIENCE - 1):
        with suppress(ValueError):
            return bool(state(record)[0])
        time.sleep(LOOK_EVERY)
    return bool(state(record)[0])


def cancel(record: dict[str, str]) -> None:
    """Take a submitted job off the queue, or end it."""
    _ask(["scancel", record["job"]])


def _ask(command: list[str]) -> str:
    """Run one of Slurm's commands; returns what it prints. Raises ValueError where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError(f"no {command[0]} here; --on slurm is for a cluster's login node") from None
    if done.returncode:
        name = "sbatch" if "sbatch" in command else command[0]
        raise ValueError(f"{name}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
