"""What every benchmark shares: turns and medians, the machine, the record, the original's code."""

from __future__ import annotations

import importlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

from launcher.rank import versions

PACKAGES = ("torch", "deepspeed", "transformers", "numpy")
CPU_FLAGS = ("amx_bf16", "avx512_bf16", "avx512_vnni")
# Names that code written for NumPy before 1.24 expects.
OLD_NUMPY = {"int": int, "float": float, "bool": bool, "object": object}


# ------------------------------------------------------------------------------- measuring
def take_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Let every side measure once a round, the order reversed from round to round.

    Turns keep a machine's drift, and reversal a place in the queue, from favouring a side.
    """
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            samples[name].append(sides[name]())
    return samples


def memory_mb(field: str) -> float:
    """A field of this process's memory on Linux, `VmRSS` (now) or `VmHWM` (peak), in MB of 2^20."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {field}")


# ------------------------------------------------------------------------------- recording
def hardware() -> dict[str, Any]:
    """The machine: processor, its cores that this process may use, memory, flags, GPUs."""
    information = _cpu_information()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    flags = information.get("flags", "").split()
    return {
        "cpu": information.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "gpus": _gpus(),
    }


def _cpu_information() -> dict[str, str]:
    """The first processor's entry in /proc/cpuinfo, empty where there is none."""
    path = Path("/proc/cpuinfo")
    entry = path.read_text(encoding="utf-8").split("\n\n")[0] if path.is_file() else ""
    pairs = (line.partition(":") for line in entry.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return [line.strip() for line in answer.stdout.splitlines()] if answer.returncode == 0 else []


def command_line(benchmark: str, arguments: Sequence[str]) -> str:
    """What was typed; of an absolute path only the name, for the rest is one machine's own."""
    shown = []
    for word in arguments:
        option, equals, value = word.rpartition("=")
        shown.append(option + equals + (Path(value).name if Path(value).is_absolute() else value))
    return shlex.join(["python", "-m", f"benchmarks.{benchmark}", *shown])


def write_record(
    path: Path,
    benchmark: str,
    arguments: Sequence[str],
    figures: Mapping[str, float],
    samples: Mapping[str, Any],
    packages: Iterable[str] = (),
) -> None:
    """Write a benchmark's result as JSON; every benchmark's file has these keys and no others.

    `packages` are those that it measures, whose versions are recorded beside the usual ones.
    """
    record = {
        "benchmark": benchmark,
        "command": command_line(benchmark, arguments),
        "hardware": hardware(),
        "versions": versions((*PACKAGES, *packages)),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "figures": dict(figures),
        "samples": dict(samples),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def print_table(title: str, heading: Sequence[str], rows: Iterable[Sequence[str]], note: str) -> None:
    """Print a table, the first column words and the others numbers, with a note below."""
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(heading):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200).print(table)  # a log has no edge
    print(note)


# ------------------------------------------------------------------------- the original's code
def reference_folder(path: str | None, file: str) -> Path | None:
    """The folder that holds the original's `file`: `path`, or its TinyBERT where that is a whole checkout.

    None where there is no path. Raises ValueError where neither holds it.
    """
    if path is None:
        return None
    for folder in (Path(path), Path(path) / "TinyBERT"):
        if (folder / file).is_file():
            return folder.resolve()
    raise ValueError(f"--reference {path}: no {file} there; give a checkout or its folder TinyBERT")


def import_reference(folder: Path, modules: Iterable[str], unused: Iterable[str]) -> list[ModuleType]:
    """Import the original's modules as they lie in `folder`, which nothing edits.

    Args:
        folder: Goes first on the path of this process, which should do nothing else.
        modules: Names to import from it.
        unused: Modules that the original imports and the benchmark never calls; those not
            installed are stood in for by empty ones.
    """
    import numpy

    for name, kind in OLD_NUMPY.items():
        if name not in vars(numpy):
            setattr(numpy, name, kind)
    for name in unused:
        _import_or_stand_in(name)
    sys.path.insert(0, str(folder))
    return [importlib.import_module(name) for name in modules]


def _import_or_stand_in(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError:
        sys.modules[name] = _StandIn(name)


class _StandIn(ModuleType):
    """An empty module; whatever is imported from it is an exception class, good in `except` too."""

    def __getattr__(self, name: str) -> type[Exception]:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})
