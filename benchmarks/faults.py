"""Benchmark `faults`: distillations disturbed at random moments, each resumed until it ends.

    python -m benchmarks.faults [--runs 20] [--minutes M] [--seed 0] [--json FILE]

A general distillation of tiny models on two processes is run once undisturbed. Then, in every run, one
fault befalls it at a moment drawn from the seed, and the same command with --resume is given until it ends
well. What came out is compared: a step that its record lacks is lost, one that it has twice is repeated,
and samples, losses or weights other than the undisturbed run's are wrong. The exit code is 1 where any run
is not recovered, whole and right, or none was disturbed. Where storage fails, the shards lie behind HTTP.
What a machine does not let us cause (a disk that becomes read-only needs root) is told and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.bad_machine import jump, jumped, jumping_clock, make_read_only, mend, own_disk
from benchmarks.bad_storage import failing_storage
from benchmarks.record import print_table, write_record
from benchmarks.startup import COMMAND, SETTINGS, make_input
from launcher.local import children, is_rank

STEPS = 60
PROCESSES = 2
SAVE_EVERY = 5
LARGEST_FILE = 50_000  # bytes: less than a checkpoint, more than metrics and what is said
AT_ONCE = min(4, len(os.sched_getaffinity(0)))  # runs: one alone leaves cores idle where it starts and ends
PATIENCE = 600  # seconds after which a command hangs
ATTEMPTS = 12  # of --resume, a few seconds apart: what a dead launcher left behind ends first
SETTINGS_HERE = [*SETTINGS, "--student.dropout=0.1", f"--record.save_every={SAVE_EVERY}"]
FIGURES = ("injected", "recovered", "resumes", "lost", "repeated", "wrong", "same_bits")
ROUNDING = 1e-6  # of weights: sums over processes may be taken in another order


def main(arguments: list[str] | None = None) -> int:
    """Cause faults, print a table, write the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=math.inf, help="then begin no further run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("--runs: give 1 or more")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = [*SETTINGS_HERE, *make_input(folder, STEPS)]
        command = [*COMMAND, "general", *settings, f"--processes={PROCESSES}"]
        kinds = possible(folder)
        step = undisturbed(command, folder) / STEPS

        def one(number: int) -> dict[str, str | float | bool] | None:
            if number and time.monotonic() - begun > 60 * options.minutes:
                return None
            rng = random.Random(f"{options.seed} {number}")
            row = disturbed(command, folder, f"run{number}", kinds[number % len(kinds)], step, rng)
            print(f"{number + 1}/{options.runs} {row}", file=sys.stderr, flush=True)
            return row

        with ThreadPoolExecutor(AT_ONCE) as threads:
            found = [row for row in threads.map(one, range(options.runs)) if row]
    figures = summarise(found)
    show(found, figures)
    if options.json:
        typed = sys.argv[1:] if arguments is None else arguments
        write_record(options.json, "faults", typed, figures, {"runs": found})
    broken = sum(not sound(row) for row in found)
    if broken or not figures["injected"]:
        ended = f"{broken} of {len(found)} runs did not end as the undisturbed one"
        print(f"{ended}; a fault befell {figures['injected']}", file=sys.stderr)
        return 1
    return 0


def possible(folder: Path) -> list[str]:
    """The kinds of faults that can be caused here; of the others it is said why they are left out."""
    kinds = []
    for kind in FAULTS:
        try:
            with surroundings([], folder, "probe", kind, random.Random(0)):
                kinds.append(kind)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            print(f"left out: {kind} ({' '.join(reason.split())})", file=sys.stderr, flush=True)
    return kinds


def undisturbed(command: list[str], folder: Path) -> float:
    """Run it whole, for comparison; returns how long it was at work on its steps."""
    start(command, folder, "whole").wait()  # compiles what is compiled once
    rows = metrics(folder / "whole")
    if len(rows) != STEPS:
        raise RuntimeError(f"the undisturbed run has {len(rows)} steps: {said(folder, 'whole')}")
    return rows[-1]["time"] - rows[0]["time"]


def start(command: list[str], folder: Path, run: str) -> subprocess.Popen[bytes]:
    """Start the command in a session of its own, what it says going to a file."""
    with (folder / f"{run}.txt").open("ab") as log:
        words = [*command, f"--run={folder / run}"]
        return subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)


def said(folder: Path, run: str) -> str:
    """The end of what a run said."""
    return (folder / f"{run}.txt").read_text(encoding="utf-8", errors="replace")[-3000:]


def metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
    return [json.loads(line) for line in lines]


def steps_done(run: Path) -> int:
    """The number of those lines."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


# ------------------------------------------------------------------------------------- the faults
def ranks(process: int) -> list[int]:
    """The ranks among the processes below one."""
    below = children(process)
    own = [child for child in below if is_rank(child)]
    inner = [rank for child in below for rank in ranks(child)]
    return inner or own  # torchrun's own words name the module too; its children are the ranks


def kill_all(process: subprocess.Popen[bytes], run: Path, rng: random.Random) -> bool:
    """A node dies: every process at once."""
    found = ranks(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    for rank in found:  # where they have a session of their own
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)
    return True


def kill_rank(process: subprocess.Popen[bytes], run: Path, rng: random.Random) -> bool:
    """One rank dies; the launcher must notice."""
    if found := ranks(process.pid):
        os.kill(rng.choice(found), signal.SIGKILL)
    return bool(found)


def kill_launcher(process: subprocess.Popen[bytes], run: Path, rng: random.Random) -> bool:
    """What started the ranks dies, and they do not."""
    process.kill()
    return True


def freeze_rank(process: subprocess.Popen[bytes], run: Path, rng: random.Random) -> bool:
    """A rank stands still, the others wait for it, and then it dies."""
    if found := ranks(process.pid):
        chosen = rng.choice(found)
        os.kill(chosen, signal.SIGSTOP)
        time.sleep(rng.uniform(0.2, 2))
        os.kill(chosen, signal.SIGKILL)
    return bool(found)


def ask_to_stop(process: subprocess.Popen[bytes], run: Path, rng: random.Random) -> bool:
    """A scheduler warns."""
    process.terminate()
    return True


def damage_checkpoint(process: subprocess.Popen[bytes], run: Path, rng: random.Random) -> bool:
    """A node dies, and a bit of the newest checkpoint with it; there is an older one."""
    kill_all(process, run, rng)
    if file := newest_file(run, rng):
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    return bool(file)


def cut_checkpoint(process: subprocess.Popen[bytes], run: Path, rng: random.Random) -> bool:
    """A node dies, and a file of the newest checkpoint ends early; there is an older one."""
    kill_all(process, run, rng)
    if file := newest_file(run, rng):
        os.truncate(file, rng.randrange(file.stat().st_size))
    return bool(file)


def newest_file(run: Path, rng: random.Random) -> Path | None:
    """A file of a run's newest checkpoint, where there is an older one too."""
    saved = sorted(run.glob("checkpoints/general/step-*[0-9]"))
    return rng.choice(sorted(saved[-1].glob("*.safetensors"))) if len(saved) > 1 else None


def fill_disk(process: subprocess.Popen[bytes], run: Path, rng: random.Random) -> bool:
    """No rank can write a file as large as a checkpoint."""
    found = ranks(process.pid)
    for rank in found:
        limit(rank, resource.RLIMIT_FSIZE, LARGEST_FILE)
    return bool(found)


def exhaust_memory(process: subprocess.Popen[bytes], run: Path, rng: random.Random) -> bool:
    """A rank gets no more memory."""
    if found := ranks(process.pid):
        limit(rng.choice(found), resource.RLIMIT_AS, 1)
    return bool(found)


def limit(process: int, kind: int, value: int) -> None:
    """Set a limit of another process, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process, kind, (value, value))


# Each returns whether it befell the run.
Fault = Callable[["subprocess.Popen[bytes]", Path, random.Random], bool]
FAULTS: dict[str, Fault] = {
    "all killed": kill_all,
    "rank killed": kill_rank,
    "launcher killed": kill_launcher,
    "rank frozen": freeze_rank,
    "asked to stop": ask_to_stop,
    "checkpoint damaged": damage_checkpoint,
    "checkpoint cut": cut_checkpoint,
    "disk full": fill_disk,
    "memory exhausted": exhaust_memory,
    "storage failing": lambda *_: True,  # by itself
    "disk read-only": make_read_only,
    "clock jumps": jump,
}
OF_CHECKPOINTS = ("checkpoint damaged", "checkpoint cut")  # come when there are two


# --------------------------------------------------------------------------------------- one run
def disturbed(
    command: list[str], folder: Path, run: str, kind: str, step: float, rng: random.Random
) -> dict[str, str | float | bool]:
    """Disturb a run once, resume it to its end, and compare it with the undisturbed one."""
    begun = time.monotonic()
    with surroundings(command, folder, run, kind, rng) as (command, took_effect):
        at, injected = befallen(command, folder, run, kind, step, rng)
        recovered, resumes = resumed(command, folder, run)
        if not recovered:
            print(said(folder, run), file=sys.stderr)
        steps = Counter(int(row["step"]) for row in metrics(folder / run))
        return {
            "fault": kind,
            "at": at,
            "injected": injected and took_effect(),
            "recovered": recovered,
            "resumes": resumes,
            "lost": sum(step not in steps for step in range(1, STEPS + 1)),
            "repeated": sum(count > 1 for count in steps.values()),
            **compared(folder / "whole", folder / run),
            "seconds": round(time.monotonic() - begun, 1),
        }


@contextlib.contextmanager
def surroundings(
    command: list[str], folder: Path, run: str, kind: str, rng: random.Random
) -> Iterator[tuple[list[str], Callable[[], bool]]]:
    """What a kind of fault needs around it; gives the command there, and whether the fault took effect.

    Raises OSError or CalledProcessError where this machine can't give it.
    """
    if kind == "storage failing":
        with failing_storage(folder / "corpus" / "shards", rng) as (url, failed):
            yield [*command, f"--shards={url}", "--stream.store.cache=null"], lambda: bool(failed)
    elif kind == "disk read-only":
        with own_disk(folder / run):
            yield command, lambda: True
    elif kind == "clock jumps":
        yield [*jumping_clock(folder / run), *command], lambda: jumped(folder / run)
    else:
        yield command, lambda: True


def befallen(
    command: list[str], folder: Path, run: str, kind: str, step: float, rng: random.Random
) -> tuple[int, bool]:
    """Start a run, cause the fault, see it end; returns the steps before it, and whether it was caused."""
    least = 2 * SAVE_EVERY + 1 if kind in OF_CHECKPOINTS else 1
    after, within = rng.randint(least, round(0.9 * STEPS)), step * rng.random()
    process = start(command, folder, run)
    while process.poll() is None and steps_done(folder / run) < after:
        time.sleep(0.005)
    time.sleep(within)
    at = steps_done(folder / run)
    injected = process.poll() is None and FAULTS[kind](process, folder / run, rng)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:  # it hangs: what comes next says whether it recovers
        kill_all(process, folder / run, rng)
        process.wait()
    if kind == "disk read-only":
        mend(folder / run)
    return at, injected


def resumed(command: list[str], folder: Path, run: str) -> tuple[bool, int]:
    """Whether the same command with --resume ends well, some attempts given, and how many it took."""
    for attempt in range(ATTEMPTS):
        if (folder / run / "summary.json").is_file():
            return True, attempt
        again = start([*command, "--resume"], folder, run)
        try:
            if again.wait(PATIENCE):
                time.sleep(2)
        except subprocess.TimeoutExpired:
            kill_all(again, folder / run, random.Random(0))
            return False, attempt + 1
    return (folder / run / "summary.json").is_file(), ATTEMPTS


def compared(whole: Path, cut: Path) -> dict[str, bool]:
    """Whether a run's samples, losses or weights are not the undisturbed run's, and whether bits agree."""
    from safetensors.numpy import load_file

    if not (cut / "student" / "model.safetensors").is_file():
        return {"wrong": True, "same_bits": False}
    ours, theirs = (load_file(run / "student" / "model.safetensors") for run in (cut, whole))
    losses = [[row["loss"] for row in metrics(run)] for run in (cut, whole)]
    digests = [[row["rows_digest"] for row in metrics(run)] for run in (cut, whole)]
    apart = max((float(abs(ours[name] - theirs[name]).max()) for name in theirs), default=0.0)
    unlike = len(losses[0]) != len(losses[1]) or any(
        abs(a - b) > ROUNDING * max(1, abs(b)) for a, b in zip(*losses, strict=True)
    )
    return {
        "wrong": ours.keys() != theirs.keys() or apart > ROUNDING or unlike or digests[0] != digests[1],
        "same_bits": apart == 0 and losses[0] == losses[1],
    }


# ----------------------------------------------------------------------------------- what it says
def sound(row: dict[str, str | float | bool]) -> bool:
    """Whether a run, disturbed or not, ended and is whole and right."""
    return bool(row["recovered"]) and not (row["lost"] or row["repeated"] or row["wrong"])


def summarise(found: list[dict[str, str | float | bool]]) -> dict[str, float]:
    """Sums over the runs that were disturbed."""
    befallen = [row for row in found if row["injected"]]
    return {"runs": len(found), **{key: sum(int(row[key]) for row in befallen) for key in FIGURES}}


def show(found: list[dict[str, str | float | bool]], figures: dict[str, float]) -> None:
    """Print sums for each fault, and over all."""
    rows = []
    for kind in FAULTS:
        sums = summarise([row for row in found if row["fault"] == kind])
        rows.append((kind, *(f"{sums[key]:.0f}" for key in FIGURES)))
    rows.append(("all", *(f"{figures[key]:.0f}" for key in FIGURES)))
    print_table(
        f"A distillation of {STEPS} steps on {PROCESSES} processes, disturbed",
        ("fault", "injected", "recovered", "resumes", "steps lost", "repeated", "wrong", "same bits"),
        rows,
        f"Checkpoints every {SAVE_EVERY} steps. Wrong: other samples than the undisturbed run's, or "
        f"weights or losses further than {ROUNDING:g} from its. Resumes: how often --resume was given.",
    )


if __name__ == "__main__":
    sys.exit(main())
