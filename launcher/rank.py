"""One process of a job: `python -m launcher.rank JOB RUN`. Only the job imports what it needs: a process
that tokenises loads no torch.
"""

from __future__ import annotations

import errno
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_pipeline.untrusted import one_line
from data_pipeline.whole import write_whole
from distill import legs, preemption
from distill.run_folder import held, write_summary
from launcher.jobs import JOBS, load
from launcher.local import how_to_resume
from launcher.settings import from_yaml

LEASE = 100.0  # seconds: somewhat more than an NFS server keeps the lock of a node that has died
# A disk that is full, over quota or read-only, a file too large for it, or a disk that fails.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# What torch says in its RuntimeErrors.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "webdataset", "triton", "numpy")


def main(job: str, run: str) -> int:
    """Run a job as one of its processes; returns the exit code."""
    try:
        preemption.listen(at_once=not JOBS[job].steps)
        _alone_is_a_group_of_one()
        quiet()
        with held(Path(run), LEASE) if first() else nullcontext():
            return _run(job, Path(run))
    except ValueError as error:  # another run holds the folder, so no error.txt
        print(f"distillery {job}: error: {error}", file=sys.stderr)
        return 2
    except preemption.Stopped as stop:
        return _tell_stopped(job, run, str(stop))
    except KeyboardInterrupt:
        return _tell_stopped(job, run, "interrupted", "continue from the last checkpoint")


def _run(job: str, folder: Path) -> int:
    """Run the job of a begun folder; returns the exit code. Raises Stopped where it stopped as asked."""
    try:
        config = from_yaml(job, (folder / "config.yaml").read_text(encoding="utf-8"))
        gc.disable()  # searching what is imported for garbage, of which it has none, takes half a second
        load(JOBS[job].run)
        gc.enable()
        summary = execute(job, config, folder)
        if first():
            _show(summary, folder)
    except Exception as error:
        # Workers and other ranks are asked to stop too, and their end may fail this one. A fault of its
        # own will come again.
        if preemption.asked():
            if not preemption.interrupted():
                traceback.print_exc()
            elif JOBS[job].steps:
                print(f"distillery {job}: error: {one_line(told(error) or repr(error))}", file=sys.stderr)
            raise preemption.Stopped("stopped, as asked") from None
        if not (line := one_line(told(error))):
            raise
        if _is_first_to_refuse():
            with suppress(OSError):  # of a full disk
                (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            print(f"distillery {job}: error: {line} (details: {folder}/error.txt)", file=sys.stderr)
        return 2
    finally:
        if (torch := sys.modules.get("torch")) and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def _is_first_to_refuse() -> bool:
    """Whether no other rank of this machine has refused before: most would say the same."""
    mark = os.environ.get("DISTILLERY_REFUSED")
    try:
        if mark:
            Path(mark).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # a full disk
        return True
    return True


def told(error: Exception) -> str:
    """What is told of an error that a user can mend; empty for a mistake of ours."""
    said = str(error)
    if isinstance(error, ValueError):
        return said
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{said}; make room or give a folder that can be written, and continue with --resume"
    if isinstance(error, MemoryError) or any(words in said for words in NO_MEMORY):
        return (
            f"out of memory ({said[:300]}); lower engine.micro_batch_size or batch_size, and continue "
            "with --resume"
        )
    return ""


def _tell_stopped(job: str, run: str, said: str, how: str = "continue") -> int:
    """Say that this process stopped as asked, and how to go on; returns its exit code.

    Under torchrun the code is 0 and a file says it: of any other code torchrun makes 1, and a failure.
    """
    if first():
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        print(f"{said}; {how_to_resume(job, run, processes, how)}", file=sys.stderr)
    if mark := os.environ.get("DISTILLERY_STOPPED"):
        Path(mark).touch()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return 0
    return preemption.exit_code(preemption.interrupted(), JOBS[job].resumes)


def execute(job: str, config: Any, folder: Path, **more: Any) -> dict[str, Any]:
    """Run a job in its begun folder. Rank 0 writes the summary and returns it, others the job's figures.

    `more` goes to the job's function, such as `task`'s on_measure.
    """
    function = load(JOBS[job].run)  # imports torch where the job needs it
    if not first():
        return function(config, folder, **more)
    write_whole(folder / "versions.json", json.dumps(describe_machine(), indent=2) + "\n")
    with legs.leg(folder, int(os.environ.get("WORLD_SIZE", "1"))):
        result = function(config, folder, **more)
    summary = {
        "job": job,
        "status": "finished",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **legs.spent(folder),
        **result,
    }
    write_summary(folder, summary)
    return summary


def _show(summary: dict[str, Any], folder: Path) -> None:
    """Print a finished job's table and write its page, where it has any."""
    from distill import report
    from distill.table import print_table

    if summary.get("rows"):
        print_table(summary["rows"])
    if summary.get("rows") or (folder / "metrics.jsonl").is_file():
        report.run(report.ReportConfig(runs=[str(folder)]))


def first() -> bool:
    """Whether this is rank 0, which alone writes."""
    return os.environ.get("RANK", "0") == "0"


def describe_machine() -> dict[str, str]:
    """Versions of what computes, the source's commit, and the hardware."""
    return {**versions(PACKAGES), "commit": _commit(), "hardware": _hardware()}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of packages; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a slow file system
        return "unknown"
    return answer.stdout.strip() or "unknown"


def _hardware() -> str:
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    threads = f", {torch.get_num_threads()} threads" if torch else ""
    return f"{os.cpu_count()} cores of {model}{threads}"


def quiet() -> None:
    """Leave the terminal to our own progress: to be called before the libraries are imported."""
    # torch warns once for each of DeepSpeed's collectives.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _alone_is_a_group_of_one() -> None:
    """Without torchrun, set its variables for a group of one on this machine's loopback, at any port."""
    if "RANK" not in os.environ:
        group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        os.environ |= {**group, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
