"""Benchmarks: turns, records, stand-ins, the step benchmark against a tiny original and TextBrewer."""

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from unittest import mock

import pytest

from benchmarks import faults, loader, record, startup, step, step_task, step_textbrewer
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
    assert figures == {
        "general_speedup": 4.0,
        "general_memory_ratio": 0.25,
        "original_sequences_per_s": 4.0,
        "ours_sequences_per_s": 16.0,
        **memory,
    }


def test_ratios_to_textbrewer_stand_beside_those_to_the_original(capsys):
    samples = {"original_seconds": [8.0], "textbrewer_seconds": [5.0, 3.0, 90.0], "ours_seconds": [2.0]}
    memory = {"original_peak_mb": 1000.0, "textbrewer_peak_mb": 500.0, "ours_peak_mb": 250.0}
    memory |= {f"{side}_growth_mb": 1.0 for side in ("original", "textbrewer", "ours")}
    figures = step.summarise(samples, memory, batch=32)
    assert (figures["general_speedup"], figures["general_memory_ratio"]) == (4.0, 0.25)
    assert (figures["textbrewer_speedup"], figures["textbrewer_memory_ratio"]) == (2.5, 0.5)
    assert figures["textbrewer_sequences_per_s"] == 6.4
    assert figures["textbrewer_peak_mb"] == 500.0
    step.show(figures, tiny())
    printed = capsys.readouterr().out
    assert "2.50 times TextBrewer's sequences/s, 0.50 of its" in printed
    assert "4.00 times the original's sequences/s, 0.25 of its" in printed
    assert step_textbrewer.NOTE in printed
    assert "--reference" not in printed


def test_ratios_to_textbrewer_need_no_original(capsys):
    samples = {"textbrewer_seconds": [3.0], "ours_seconds": [2.0]}
    memory = {f"{side}_{kind}_mb": 1.0 for side in ("textbrewer", "ours") for kind in ("peak", "growth")}
    figures = step.summarise(samples, memory, batch=32)
    assert figures["textbrewer_speedup"] == 1.5
    assert "general_speedup" not in figures
    step.show(figures, tiny())
    assert "Without the original" in capsys.readouterr().out


def test_ours_alone_has_no_ratio(capsys):
    figures = step.summarise({"ours_seconds": [2.0]}, {"ours_peak_mb": 2.0, "ours_growth_mb": 1.0}, batch=2)
    assert set(figures) == {"ours_sequences_per_s", "ours_peak_mb", "ours_growth_mb"}
    step.show(figures, tiny())
    printed = capsys.readouterr().out
    assert "Ours alone" in printed
    assert "TextBrewer" not in printed


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
    assert not any("textbrewer" in name for name in figures)
    samples |= {"textbrewer_intermediate_seconds": [1.0, 3.0], "textbrewer_prediction_seconds": [0.5]}
    figures = step_task.summarise(samples, batch=32)
    assert (figures["task_speedup"], figures["textbrewer_task_speedup"]) == (8.0, 2.0)
    assert figures["textbrewer_intermediate_sequences_per_s"] == 16.0
    step_task.show(figures, tiny())
    printed = capsys.readouterr().out
    assert "8.00 times the original's speed" in printed
    assert "2.00 times TextBrewer's speed" in printed


def test_the_tasks_sentences_are_as_long_as_sst2s():
    lengths = step_task.examples(tiny()).lengths
    assert (lengths.min(), lengths.max()) == (3, 63)
    assert 13 < lengths.mean() < 14.5


def test_the_time_of_a_turn_is_that_of_a_step_of_each_side(monkeypatch):
    """The original makes one step in a turn, the others `TURN`."""
    monkeypatch.setattr(step_task, "in_own_process", lambda *_: None)
    seconds = 8.0 * step_task.TURN

    def measured(sides, rounds):
        return {f"{side}_seconds": [seconds] * rounds for side in sides}, {}

    monkeypatch.setattr(step_task, "measure", measured)
    samples = step_task.measure_task(tiny(reference=Path("there"), textbrewer=True))
    for stage in step_task.STAGES:
        assert samples[f"original_{stage}_seconds"] == [seconds] * 2
        assert samples[f"textbrewer_{stage}_seconds"] == samples[f"ours_{stage}_seconds"] == [8.0] * 2


# ---------------------------------------------------------------------------------- TextBrewer
def test_textbrewer_and_the_original_do_not_run_in_our_environment(tmp_path):
    """`measure` prepares it for ours and for what follows."""
    settings = tiny(reference=tmp_path, textbrewer=True)
    names = ["original", "textbrewer", "ours"]
    assert list(step.sides_of(settings, tmp_path)) == names
    assert list(step_task.sides_of(settings, "prediction", tmp_path)) == names
    assert list(step.sides_of(tiny(), tmp_path)) == ["ours"]
    assert list(step_task.sides_of(tiny(), "prediction", tmp_path)) == ["ours"]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("", None),
        ("raise ImportError('no such luck')", "ImportError: no such luck"),
        ("import os; os._exit(3)", "exit 3"),
    ],
)
def test_textbrewer_is_left_out_where_it_cant_be_imported(program, reason, tmp_path, monkeypatch):
    (tmp_path / "textbrewer.py").write_text(program, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    line = f"Left out: textbrewer ({reason}); to have it, pip install textbrewer"
    assert step_textbrewer.left_out() == (line if reason else "")


@pytest.mark.parametrize("why", ["", "Left out: textbrewer (gone)"])
def test_textbrewer_is_measured_where_it_can_be_and_else_a_line_says_why(why, monkeypatch, capsys):
    seen = []

    def measured(settings):
        seen.append(settings.textbrewer)
        return {"ours_seconds": [1.0]}, {"ours_peak_mb": 1.0, "ours_growth_mb": 1.0}

    monkeypatch.setattr(step_textbrewer, "left_out", lambda: why)
    monkeypatch.setattr(step, "measure_general", measured)
    tasks = {f"ours_{stage}_seconds": [1.0] for stage in step_task.STAGES}
    monkeypatch.setattr(
        step_task, "measure_task", lambda settings: seen.append(settings.textbrewer) or tasks
    )
    monkeypatch.setattr(step, "write_record", lambda *arguments: seen.append(arguments[-1]))
    assert step.main(["--json", "step.json"]) == 0
    assert seen == ([False, False, ()] if why else [True, True, ("textbrewer",)])
    assert ("Left out" in capsys.readouterr().out) == bool(why)


def test_textbrewer_compares_the_layers_that_the_others_compare():
    wanted = step_textbrewer.matches(Settings())
    hidden = [match for match in wanted if match["feature"] == "hidden"]
    assert [(match["layer_S"], match["layer_T"]) for match in hidden] == [
        *((0, 0), (1, 3), (2, 6), (3, 9), (4, 12))
    ]
    assert all(match["proj"] == ["linear", 312, 768] for match in hidden)
    attention = [(match["layer_S"], match["layer_T"]) for match in wanted if match not in hidden]
    assert attention == [(0, 2), (1, 5), (2, 8), (3, 11)]  # attention maps count from 0


def test_textbrewers_sentences_are_the_originals_padded_to_the_longest():
    data = step_task.examples(tiny())
    ids, _, mask = step_task._padded(data, 3, 4)
    batch = step_textbrewer.padded(data, 3, 4)
    longest = int(mask.sum(1).max())
    assert batch["input_ids"].equal(ids[:, :longest])
    assert batch["attention_mask"].equal(mask[:, :longest])
    assert not batch["token_type_ids"].any()


def test_textbrewers_loss_is_that_of_the_matches_with_a_teacher_that_does_not_train(tmp_path):
    pytest.importorskip("textbrewer")
    settings = tiny()
    step.save_teacher(tmp_path / "teacher", settings)
    distiller = step_textbrewer.build(settings, tmp_path, "BertModel", step_textbrewer.matches(settings))
    ids, mask, segments = step.tokens(0, settings)
    mask[:, 10:] = 0  # what is padding must not count
    batch = step_textbrewer.named(ids, mask, segments)
    with distiller:
        assert (distiller.model_T.training, distiller.model_S.training) == (False, True)
        distiller.model_S.eval()  # without dropout, for the formula below
        loss, named = distiller.train_on_batch(batch, {})
        own, target = distiller.model_S(**batch), distiller.model_T(**batch)
    expected = {}
    for project, (student, teacher) in zip(distiller.projs, ((0, 0), (1, 2), (2, 4)), strict=False):
        error = project(own.hidden_states[student]) - target.hidden_states[teacher]
        expected[f"unweighted_hidden_hidden_mse_{student}_{teacher}"] = error[:, :10].square().mean()
    for student, teacher in ((0, 1), (1, 3)):
        error = own.attentions[student] - target.attentions[teacher]
        name = f"unweighted_attention_attention_mse_{student}_{teacher}"
        expected[name] = error[..., :10, :10].square().mean()
    values = {name: value.item() for name, value in expected.items()}
    assert {name: value.item() for name, value in named.items()} == pytest.approx(values, rel=1e-4, abs=0)
    assert loss.item() == pytest.approx(sum(values.values()), rel=1e-4)
    loss.backward()
    assert all(parameter.grad is None for parameter in distiller.model_T.parameters())
    assert distiller.model_S.encoder.layer[1].attention.self.query.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("half", ["general", *step_task.STAGES])
def test_textbrewer_updates_its_student_once_a_step(half, tmp_path, monkeypatch):
    textbrewer = pytest.importorskip("textbrewer")
    import torch

    settings = tiny()
    if half == "general":
        step.save_teacher(tmp_path / "teacher", settings)
        side, steps = step_textbrewer.general(settings, tmp_path), 1
    else:
        step.save_teacher(tmp_path / "teacher", settings, "BertForSequenceClassification")
        side, steps = step_textbrewer.task(settings, half, tmp_path), step_task.TURN
    updates, losses, read = [], [], []
    update, train = torch.optim.AdamW.step, textbrewer.GeneralDistiller.train_on_batch

    def counted(distiller, batch, args):
        loss, named = train(distiller, batch, args)
        read.append(batch["input_ids"])
        losses.append(sorted(name.split("_")[1] for name in named))
        return loss, named

    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: updates.append(1) or update(self))
    monkeypatch.setattr(textbrewer.GeneralDistiller, "train_on_batch", counted)
    next(side)
    assert (updates, losses) == ([], [])
    for done in (1, 2):
        next(side)
        assert len(updates) == len(losses) == done * steps
    wanted = ["kd"] if half == "prediction" else ["attention"] * 2 + ["hidden"] * 3
    assert losses == [wanted] * (2 * steps)
    data = step_task.examples(settings)
    for number, ids in enumerate(read):
        batch = step_textbrewer.padded(data, number, settings.batch)
        assert ids.equal(step.tokens(number, settings)[0] if half == "general" else batch["input_ids"])
    assert list((tmp_path / "saved").iterdir()) == []  # a step saves nothing


@pytest.mark.slow
def test_textbrewer_steps_in_a_process_of_its_own():
    pytest.importorskip("textbrewer")
    settings = tiny(textbrewer=True, rounds=1)
    samples, memory = step.measure_general(settings)
    assert set(samples) == {"textbrewer_seconds", "ours_seconds"}
    assert memory["textbrewer_peak_mb"] > 0
    tasks = step_task.measure_task(settings)
    assert {f"textbrewer_{stage}_seconds" for stage in step_task.STAGES} < tasks.keys()
    assert all(value > 0 for values in (samples | tasks).values() for value in values)
