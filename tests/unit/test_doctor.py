"""The job `doctor` names what is there, and what the missing parts cost."""

import json
import os
import shutil

import pytest

from launcher import doctor
from launcher.doctor import DoctorConfig, Part, inspect_machine


@pytest.fixture(scope="module")
def parts() -> list[Part]:
    return inspect_machine()


def by_name(parts: list[Part]) -> dict[str, Part]:
    return {part.name: part for part in parts}


def test_this_machine_is_fit_to_run_the_tests(parts):
    found = {part.name for part in parts if part.found}
    assert {"Python", "CPU cores", "memory", "torch", "deepspeed", "transformers"} <= found


def test_a_system_that_tells_no_affinity_has_cores_too(monkeypatch):
    monkeypatch.setattr(doctor, "_ask_torch", dict)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert by_name(inspect_machine())["CPU cores"].found == str(os.cpu_count())


def test_every_missing_part_has_a_cost_and_a_remedy(parts):
    for part in parts:
        assert part.found or (part.cost and part.remedy), part


def test_json_holds_every_part(parts, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "inspect_machine", lambda: parts)
    assert doctor.run(DoctorConfig(json=True)) == 0
    assert [Part(**row) for row in json.loads(capsys.readouterr().out)] == parts


def test_table_shows_remedies_of_missing_parts_only(monkeypatch, capsys):
    parts = [Part("here", "1.0", "dear", "buy"), Part("gone", "", "slow", "get it[all]")]
    monkeypatch.setattr(doctor, "inspect_machine", lambda: parts)
    doctor.run(DoctorConfig())
    printed = capsys.readouterr().out
    assert "slow" in printed
    assert "get it[all]" in printed
    assert "dear" not in printed


def test_missing_compiler(monkeypatch):
    monkeypatch.setattr(doctor, "_ask_torch", dict)
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiler = by_name(inspect_machine())["C++ compiler"]
    assert compiler.found == ""
    assert "DeepSpeed" in compiler.cost
    assert "g++" in compiler.remedy


def test_a_compiler_of_several_words(monkeypatch):
    monkeypatch.setattr(doctor, "_ask_torch", dict)
    monkeypatch.setenv("CXX", "env c++")
    assert by_name(inspect_machine())["C++ compiler"].found == f"{shutil.which('env')} c++"


def test_ninja_is_found_beside_python_when_path_is_empty(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_ask_torch", dict)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(doctor.sys, "executable", str(tmp_path / "bin" / "python"))
    assert by_name(inspect_machine())["ninja"].found == ""
    (tmp_path / "bin" / "ninja").touch(mode=0o755)
    assert by_name(inspect_machine())["ninja"].found == str(tmp_path / "bin" / "ninja")


def test_torch_that_does_not_import_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "_TORCH_FACTS", "raise ImportError")
    parts = by_name(inspect_machine())
    assert parts["torch"].found == parts["GPU"].found == parts["gloo"].found == ""
