"""Energy, where the machine tells: its CPU packages' by RAPL, its GPUs' by NVML. Both count whole devices,
whatever else runs on them.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


@dataclass
class Counter:
    """A counter of energy that wraps around above `most` joules; `joules` is what it has counted here."""

    device: str
    read: Callable[[], float]
    most: float
    last: float = 0.0
    joules: float = 0.0


class EnergyMeter:
    """Measures from its creation on; must be read more often than a counter wraps around (many minutes)."""

    def __init__(self, gpus: int, powercap: Path = POWERCAP):
        self.counters = []
        for counter in [*_packages(powercap), *(_gpus(gpus) if gpus else [])]:
            with suppress(Exception):  # not ours to read, or none after all
                counter.last = counter.read()
                self.counters.append(counter)

    def read(self) -> dict[str, float]:
        """Joules of each kind of device, `cpu` and `gpu`, that tells them."""
        found: dict[str, float] = {}
        for counter in self.counters:
            with suppress(Exception):
                now = counter.read()
                passed = now - counter.last + (counter.most if now < counter.last else 0.0)
                counter.joules += max(0.0, passed)
                counter.last = now
            found[counter.device] = found.get(counter.device, 0.0) + counter.joules
        return found


def _packages(powercap: Path) -> list[Counter]:
    """Those of the CPU packages; RAPL's other zones are parts of packages, or hold several."""
    counters = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        with suppress(OSError, ValueError):
            if (zone / "name").read_text().startswith("package"):
                most = _joules_in(zone / "max_energy_range_uj")
                counters.append(Counter("cpu", partial(_joules_in, zone / "energy_uj"), most))
    return counters


def _joules_in(path: Path) -> float:
    return int(path.read_text()) / 1e6


def _gpus(count: int) -> list[Counter]:
    """Those of the first `count` GPUs that this process sees, where CUDA numbers GPUs as NVML does or all
    are alike; none without NVML's Python module (nvidia-ml-py).
    """
    with suppress(Exception):  # no module, no driver, or a GPU that counts nothing
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handles = [_handle(nvml, name) for name in _visible(nvml.nvmlDeviceGetCount())[:count]]
        return [Counter("gpu", partial(_gpu_joules, nvml, handle), 0.0) for handle in handles]
    return []


def _gpu_joules(nvml: Any, handle: Any) -> float:
    return nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3


def _visible(count: int) -> list[str]:
    """The names of this process's GPUs: numbers, or UUIDs."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given is not None else map(str, range(count))
    return [name.strip() for name in names if name.strip()]


def _handle(nvml: Any, name: str) -> Any:
    if name.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)
