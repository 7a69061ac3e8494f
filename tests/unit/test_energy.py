"""Energy as made-up machines tell it."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill import legs
from distill.energy import EnergyMeter
from distill.report import ReportConfig
from distill.report import run as report


def zone(folder: Path, number: str, name: str, joules: float, most: float = 1000) -> Path:
    """A zone of powercap; returns its counter."""
    place = folder / f"intel-rapl:{number}"
    place.mkdir()
    (place / "name").write_text(f"{name}\n")
    (place / "max_energy_range_uj").write_text(f"{most * 10**6:.0f}\n")
    return count(place / "energy_uj", joules)


def count(counter: Path, joules: float) -> Path:
    counter.write_text(f"{joules * 10**6:.0f}\n")
    return counter


def test_packages_are_counted_over_the_end_of_their_counters(tmp_path):
    first = zone(tmp_path, "0", "package-0", 900)
    second = zone(tmp_path, "1", "package-1", 10)
    part, whole = zone(tmp_path, "0:0", "core", 5), zone(tmp_path, "2", "psys", 5)
    meter = EnergyMeter(0, tmp_path)
    assert meter.read() == {"cpu": 0}
    for counter, joules in ((first, 950), (second, 30), (part, 900), (whole, 900)):
        count(counter, joules)
    assert meter.read() == {"cpu": pytest.approx(70)}
    count(first, 20)  # 1000 is 0 again
    assert meter.read() == {"cpu": pytest.approx(140)}
    first.unlink()  # no longer to be read: what it told counts
    count(second, 40)
    assert meter.read() == {"cpu": pytest.approx(150)}


def test_a_machine_that_tells_nothing_is_not_asked(tmp_path):
    assert EnergyMeter(0, tmp_path / "none").read() == {}
    zone(tmp_path, "0", "package-0", 1).unlink()
    zone(tmp_path, "1", "package-1", 1).write_text("who knows")
    assert EnergyMeter(2, tmp_path).read() == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_counter_for_root_alone_is_left_out(tmp_path):
    zone(tmp_path, "0", "package-0", 1).chmod(0)
    assert EnergyMeter(0, tmp_path).read() == {}


def test_gpus_that_the_process_sees_are_counted(tmp_path, monkeypatch):
    millijoules = {0: 10_000, 1: 20_000, 2: 30_000, "GPU-x": 40_000}
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: millijoules[gpu],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    both = EnergyMeter(2, tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-x")
    others = EnergyMeter(2, tmp_path)
    for gpu in millijoules:
        millijoules[gpu] *= 2
    assert both.read() == {"gpu": pytest.approx(30)}
    assert others.read() == {"gpu": pytest.approx(70)}
    assert EnergyMeter(0, tmp_path).read() == {}


def test_the_report_tells_the_energy_of_all_legs(tmp_path, monkeypatch):
    power, run = tmp_path / "power", tmp_path / "run"
    power.mkdir()
    run.mkdir()
    counter = zone(power, "0", "package-0", 0, most=10**7)
    monkeypatch.setattr(legs, "EnergyMeter", lambda gpus: EnergyMeter(gpus, power))
    for joules in (3_600_000, 7_200_000):
        with legs.leg(run, 1):
            count(counter, joules)
    assert legs.spent(run)["cpu_wh"] == 2000
    (run / "summary.json").write_text(json.dumps({"status": "finished", **legs.spent(run)}))
    report(ReportConfig([str(run)]))
    page = (run / "report.html").read_text()
    assert "2.00 kWh" in page
    assert "other programs included" in page
    (run / "summary.json").write_text('{"status": "finished"}')
    report(ReportConfig([str(run)]))
    assert "Energy" not in (run / "report.html").read_text()
