"""The job `doctor`: what this machine has, what each missing part costs, and how to get it."""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_pipeline.settings import usable_cores
from distill.compiler import compiler
from launcher.rank import versions


@dataclass
class DoctorConfig:
    """Settings of the job `doctor`.

    Args:
        json: Print JSON instead of a table.
    """

    json: bool = False


@dataclass(frozen=True)
class Part:
    """One thing that a machine may have: `found` is empty where it is missing."""

    name: str
    found: str
    cost: str = ""
    remedy: str = ""


def run(config: DoctorConfig) -> int:
    """Print every part as a table or as JSON; a missing part is news, not a failure."""
    parts = inspect_machine()
    if config.json:
        print(json.dumps([asdict(part) for part in parts], indent=2))
    else:
        Console().print(_table(parts))
    return 0


def inspect_machine() -> list[Part]:
    """List what this machine has and lacks, most basic parts first."""
    torch = _ask_torch()
    return [*_hardware(torch), *_packages(torch), *_build_tools(), *_connections(torch)]


def _table(parts: list[Part]) -> Table:
    """Show costs and remedies where something is missing; paths fold so that none is cut off."""
    table = Table()
    for heading in ("part", "found", "what its absence costs, and how to get it"):
        table.add_column(heading, overflow="fold")
    for part in parts:
        if part.found:
            table.add_row(part.name, escape(part.found))
        else:
            advice = f"{escape(part.cost)}\n[dim]{escape(part.remedy)}[/dim]"
            table.add_row(part.name, "[red]missing[/red]", advice)
    return table


def _hardware(torch: dict[str, Any]) -> list[Part]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [
        Part("Python", f"{platform.python_version()} ({sys.executable})"),
        Part("CPU cores", str(usable_cores())),
        Part("memory", f"{memory / 2**30:.0f} GiB"),
        Part(
            "CPU matrix units",
            _cpu_units(),
            "A teacher on the CPU runs in fp32: twice as long as in int8, several times as in bf16.",
            "Use a CPU with AMX or AVX-512 VNNI (amx_bf16, avx512_vnni in /proc/cpuinfo), or a GPU.",
        ),
        Part(
            "GPU",
            torch.get("gpu", ""),
            "Everything runs on the CPU: fine for the demo, slow for a whole corpus.",
            "Use a machine with a GPU and its driver, and a torch built for it.",
        ),
    ]


def _packages(torch: dict[str, Any]) -> list[Part]:
    required, found = "Nothing trains without it.", versions(["deepspeed", "transformers"])
    return [
        Part(
            "torch",
            torch.get("torch", ""),
            required,
            "make setup. If it is installed, `python -c 'import torch'` says why it fails.",
        ),
        Part("deepspeed", found.get("deepspeed", ""), required, "make setup"),
        Part("transformers", found.get("transformers", ""), required, "make setup"),
        *(Part(part["part"], f"{part['chosen']} ({part['why']})") for part in torch.get("fused", [])),
    ]


def _build_tools() -> list[Part]:
    words = compiler()
    found = " ".join([shutil.which(words[0]) or "", *words[1:]]) if words else ""
    uncompiled = "DeepSpeed can't compile its extensions, and training does not start."
    return [
        Part("C++ compiler", found, uncompiled, "apt install g++"),
        Part("Python headers", _python_headers(), uncompiled, "apt install python3-dev"),
        Part(
            "ninja",
            shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent)) or "",
            uncompiled,
            "pip install ninja",
        ),
    ]


def _connections(torch: dict[str, Any]) -> list[Part]:
    return [
        Part(
            "gloo",
            torch.get("gloo", ""),
            "Training on CPUs can't use more than one process.",
            "Install a torch built with gloo: those on PyPI are.",
        ),
        Part(
            "nccl",
            torch.get("nccl", ""),
            "Training can't use more than one GPU.",
            "Install a torch built for CUDA or ROCm.",
        ),
    ]


_TORCH_FACTS = """
import json
import torch
from distill.fused import choices
devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
distributed = torch.distributed
reachable = distributed.is_available()
nccl = reachable and distributed.is_nccl_available() and torch.cuda.nccl.version()
print(json.dumps({
    "torch": torch.__version__,
    "gpu": ", ".join(f"{d.name} ({d.total_memory / 2**30:.0f} GiB)" for d in devices),
    "gloo": "built in" if reachable and distributed.is_gloo_available() else "",
    "nccl": ".".join(map(str, nccl)) if nccl else "",
    "fused": [vars(choice) for choice in choices()],
}))
"""


def _ask_torch() -> dict[str, Any]:
    """Ask torch in a child process, for the launcher itself never imports it."""
    child = subprocess.run(
        [sys.executable, "-c", _TORCH_FACTS], capture_output=True, text=True, check=False
    )
    return json.loads(child.stdout.splitlines()[-1]) if child.returncode == 0 else {}


def _cpu_units() -> str:
    """The CPU's instructions that speed up a teacher's matrix products most."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    names = {"amx_bf16": "AMX, bf16", "avx512_vnni": "AVX-512 VNNI, int8"}
    if "AuthenticAMD" in flags:  # as products.bf16_is_faster has it
        names["avx512_bf16"] = "AVX-512 BF16, bf16 where logits are stored"
    return "; ".join(name for flag, name in names.items() if flag in flags)


def _python_headers() -> str:
    headers = Path(sysconfig.get_path("include"))
    return str(headers) if (headers / "Python.h").exists() else ""
