"""Benchmarks: turns, records, stand-ins, and the step benchmark against a tiny made-up original."""

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from unittest import mock

import pytest

from benchmarks import faults, loader, record, startup, step, step_task
from benchmarks.step import Settings, Shape

ROOT = Path(__file__).parents[2]
# An original in a few lines, with the names and the shapes of outputs that the benchmark relies on.
MODELING = """
import boto3
import torch
from torch import nn


class BertConfig:
    def __init__(self, vocabulary, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size):
        self.vocabulary, self.width, self.layers = vocabulary, hidden_size, num_hidden_layers
        self.heads = num_attention_heads


class BertModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.layers))

    def forward(self, ids, segments, mask):
        states, scores = [self.embedding(ids)], []
        for layer in self.layers:
            one = states[-1] @ states[-1].mT
            scores.append(one[:, None].expand(-1, self.config.heads, -1, -1))
            states.append(layer(states[-1]))
        return states, scores, states[-1][:, 0]


class TinyBertForPreTraining(nn.Module):
    def __init__(self, config, fit_size):
        super().__init__()
        self.bert, self.fit = BertModel(config), nn.Linear(config.width, fit_size)

    def forward(self, ids, segments, mask):
        states, scores, _ = self.bert(ids, segments, mask)
        return scores, [self.fit(state) for state in states]


class TinyBertForSequenceClassification(TinyBertForPreTraining):
    def __init__(self, config, labels, fit_size):
        super().__init__(config, fit_size)
        self.classifier = nn.Linear(config.width, labels)

    def forward(self, ids, segments, mask, is_student=False):
        states, scores, first = self.bert(ids, segments, mask)
        fitted = [self.fit(state) for state in states] if is_student else states
        return self.classifier(first), scores, fitted
"""
OPTIMIZATION = """
import torch


class BertAdam(torch.optim.SGD):
    def __init__(self, groups, lr, warmup, t_total, schedule="warmup_linear"):
        super().__init__(groups, lr=lr)
"""


@pytest.fixture(autouse=True)
def _environment():
    """The benchmark prepares the environment of its processes; it is put back after each test."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose folder TinyBERT holds the made-up original."""
    package = tmp_path / "checkout" / "TinyBERT" / "transformer"
    package.mkdir(parents=True)
    for name, text in {"__init__": "", "modeling": MODELING, "optimization": OPTIMIZATION}.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    return tmp_path / "checkout"


def tiny(**changes) -> Settings:
    shapes = {"teacher": Shape(4, 32, 4, 64), "student": Shape(2, 24, 4, 48)}
    return Settings(**{"rounds": 2, "batch": 4, "length": 16, "vocabulary": 100, **shapes, **changes})


# ---------------------------------------------------------------------------------- the record
def test_sides_take_turns_in_alternating_order():
    calls: list[str] = []

    def side(name):
        return lambda: calls.append(name) or float(len(calls))

    samples = record.take_turns({"a": side("a"), "b": side("b")}, rounds=3)
    assert "".join(calls) == "abbaab"
    assert samples == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_peak_memory_is_no_less_than_the_present():
    assert 0 < record.memory_mb("VmRSS") <= record.memory_mb("VmHWM")


def test_record_has_these_keys_and_no_machine_path(tmp_path):
    path = tmp_path / "new" / "step.json"
    arguments = ["--reference", str(tmp_path / "TinyBERT"), "--rounds", "3", f"--json={path}"]
    record.write_record(path, "step", arguments, {"general_speedup": 2.0}, {"ours_seconds": [1.0]})
    written = json.loads(path.read_text(encoding="utf-8"))
    keys = ["benchmark", "command", "hardware", "versions", "date", "figures", "samples"]
    assert list(written) == keys
    shown = "--reference TinyBERT --rounds 3 --json=step.json"
    assert written["command"] == f"python -m benchmarks.step {shown}"
    assert set(written["hardware"]) == {"cpu", "cores", "memory_gib", "cpu_flags", "gpus"}
    assert set(written["versions"]) == {"python", "torch", "deepspeed", "transformers", "numpy"}
    assert str(tmp_path) not in path.read_text(encoding="utf-8")


def test_a_missing_module_is_stood_in_for_and_old_numpy_names_are_there(tmp_path):
    original = """
        import absent_package, numpy
        from absent_package.errors import Absent
        assert numpy.int is int
        try:
            raise KeyError
        except (Absent, absent_package.Other, KeyError):
            print("caught")
    """
    (tmp_path / "original.py").write_text(dedent(original), encoding="utf-8")
    program = (
        "import pathlib, sys; from benchmarks.record import import_reference\n"
        "unused = ['absent_package', 'absent_package.errors']\n"
        "import_reference(pathlib.Path(sys.argv[1]), ['original'], unused)"
    )
    command = [sys.executable, "-W", "error::FutureWarning", "-c", program, str(tmp_path)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (child.stdout, child.returncode) == ("caught\n", 0), child.stderr


# -------------------------------------------------------------------------------------- the step
def test_a_checkout_and_its_folder_are_the_same_reference(checkout):
    inside, file = "TinyBERT", "transformer/modeling.py"
    expected = (checkout / inside).resolve()
    assert record.reference_folder(str(checkout), file) == expected
    assert record.reference_folder(str(checkout / inside), file) == expected


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_wrong_reference_is_one_line_and_exit_2(folder, tmp_path, capsys):
    assert step.main(["--reference", str(tmp_path / folder)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "give a checkout" in printed.err


@pytest.mark.parametrize(
    ("benchmark", "option"),
    [
        (step, "--rounds=0"),
        (step, "--batch=x"),
        (step, "--teacher-precision=int4"),
        (loader, "--rows=many"),
        (faults, "--runs=0"),
        (startup, "--places=moon"),
    ],
)
def test_a_wrong_option_is_exit_2(benchmark, option):
    with pytest.raises(SystemExit) as ended:
        benchmark.main([option])
    assert ended.value.code == 2


def test_figures_are_ratios_of_medians():
    samples = {"original_seconds": [8.0, 4.0, 100.0], "ours_seconds": [2.0, 1.0, 2.0]}
    memory = {"original_peak_mb": 1000.0, "ours_peak_mb": 250.0}
    figures = step.summarise(samples, memory, batch=32)
    assert figures["general_speedup"] == 4.0
    assert figures["general_memory_ratio"] == 0.25
    assert figures["original_sequences_per_s"] == 4.0
    assert figures["ours_sequences_per_s"] == 16.0


def test_ours_alone_has_no_ratio(capsys):
    figures = step.summarise({"ours_seconds": [2.0]}, {"ours_peak_mb": 2.0, "ours_growth_mb": 1.0}, batch=2)
    assert set(figures) == {"ours_sequences_per_s", "ours_peak_mb", "ours_growth_mb"}
    step.show(figures, tiny())
    assert "Ours alone" in capsys.readouterr().out


def test_both_sides_see_the_same_ids_which_change_from_step_to_step():
    first, again, other = step.tokens(0, tiny())[0], step.tokens(0, tiny())[0], step.tokens(1, tiny())[0]
    assert first.equal(again)
    assert not first.equal(other)
    (batch,) = step.SyntheticSource(tiny()).micro_batches(0)
    assert batch.ids.equal(first)
    assert bool(batch.mask.all())


@pytest.mark.slow
def test_both_sides_step_in_processes_of_their_own(checkout):
    reference = record.reference_folder(str(checkout), "transformer/modeling.py")
    samples, memory = step.measure_general(tiny(reference=reference))
    assert {name: len(values) for name, values in samples.items()} == {
        "original_seconds": 2,
        "ours_seconds": 2,
    }
    assert all(value > 0 for values in samples.values() for value in values)
    assert set(memory) == {
        f"{side}_{key}_mb" for side in ("original", "ours") for key in ("peak", "growth")
    }
    assert memory["ours_peak_mb"] > memory["ours_growth_mb"] > 0


@pytest.mark.slow
def test_a_side_that_fails_says_why(checkout):
    folder = checkout / "TinyBERT"
    (folder / "transformer" / "optimization.py").write_text("raise OSError('no such luck')")
    with pytest.raises(RuntimeError, match=r"original:\n(.|\n)*no such luck"):
        step.measure_general(tiny(reference=folder))


@pytest.mark.slow
def test_task_steps_of_both_sides_and_stages_are_measured(checkout):
    reference = record.reference_folder(str(checkout), "transformer/modeling.py")
    samples = step_task.measure_task(tiny(reference=reference, rounds=1))
    names = {f"{side}_{stage}_seconds" for side in ("original", "ours") for stage in step_task.STAGES}
    assert samples.keys() == names
    assert all(value > 0 for values in samples.values() for value in values)


def test_the_tasks_speedup_is_of_both_stages_together(capsys):
    samples = {"original_intermediate_seconds": [6.0], "original_prediction_seconds": [4.0]}
    samples |= {"ours_intermediate_seconds": [1.0], "ours_prediction_seconds": [0.25]}
    figures = step_task.summarise(samples, batch=32)
    assert figures["task_speedup"] == 8.0
    assert figures["ours_prediction_sequences_per_s"] == 128.0
    step_task.show(figures, tiny())
    assert "8.00 times" in capsys.readouterr().out


def test_the_tasks_sentences_are_as_long_as_sst2s():
    lengths = step_task.examples(tiny()).lengths
    assert (lengths.min(), lengths.max()) == (3, 63)
    assert 13 < lengths.mean() < 14.5
