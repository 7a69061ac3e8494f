"""Model classes and loss terms of the user's own: the guide's example by the user's door, and refusals."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from data_pipeline.settings import TaskConfig
from data_pipeline.vocabulary import copy_tokenizer
from distill.encoders import Batch, Signal
from distill.objective import Objective, count
from distill.settings import (
    EvaluateConfig,
    ExportConfig,
    GeneralConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PredictConfig,
    StageConfig,
    StudentConfig,
    TaskDistillConfig,
    TeacherConfig,
)
from distill.student import build_student
from launcher.cli import main
from launcher.jobs import check
from launcher.settings import from_yaml, to_yaml
from tests.helpers import indented, python_in, tiny_tokens
from tests.processes import run_here

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "own_student.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the guide's module in it, named otherwise than any other test's."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_student.py").write_text("\n".join(python_in(GUIDE)))
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)


@pytest.fixture(scope="module")
def teacher(folder, tiny_tokenizer) -> str:
    shape = BertConfig(
        vocab_size=len(tiny_tokens()),
        num_hidden_layers=4,
        hidden_size=24,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=128,
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification(shape).save_pretrained(folder / "TEACHER")
    copy_tokenizer(tiny_tokenizer, folder / "TEACHER")
    return str(folder / "TEACHER")


def config(teacher: str, tiny_task: Path, **objective) -> TaskDistillConfig:
    data = TaskConfig(str(tiny_task / "train.tsv"), str(tiny_task / "dev.tsv"), max_length=32)
    stage = StageConfig(2.0, 20, ObjectiveConfig(**objective), OptimizerConfig(lr=3e-3))
    student = StudentConfig(cls="my_student.ConvStudent", arguments={"width": 16})
    return TaskDistillConfig(TeacherConfig(teacher), data, student, prediction=stage)


def test_a_class_and_a_function_given_from_python_are_their_names_in_the_recipe(teacher, tiny_task):
    import my_student

    given = config(teacher, tiny_task, logits=1.0, custom={my_student.confident: 0.5})
    given.student.cls = my_student.ConvStudent
    text = to_yaml(given)
    again = from_yaml("task", text)
    assert again.student.cls == "my_student.ConvStudent"
    assert again.prediction.objective.custom == {"my_student.confident": 0.5}
    assert to_yaml(again) == text


def test_what_no_process_could_import_is_refused(teacher, tiny_task):
    class Local(nn.Module):
        pass

    given = config(teacher, tiny_task, logits=1.0)
    given.student.cls = Local
    with pytest.raises(ValueError, match=r"write the class or function into a file my_module\.py"):
        to_yaml(given)


def test_it_trains_and_is_measured_and_goes_on_from_its_folder(tmp_path, teacher, tiny_task):
    given = config(teacher, tiny_task, custom={"my_student.confident": 1.0})
    check("task", given, 1)
    summary = run_here("task", given, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss/my_student.confident"] for row in rows if row["split"] == "train"]
    assert {row["stage"] for row in rows} == {"prediction"}
    assert losses == [row["loss"] for row in rows if row["split"] == "train"]
    student = str(tmp_path / "run" / "student")
    models = EvaluateConfig(
        {"student": [student]}, given.task, latency=False, classes=["my_student.ConvStudent"]
    )
    check("evaluate", models, 1)
    (row,) = run_here("evaluate", models, tmp_path / "evaluate")["rows"]
    assert row["accuracy_mean"] == summary["best"]["accuracy"]
    given.student = StudentConfig(cls="my_student.ConvStudent", path=student)
    check("task", given, 1)


def test_a_term_is_a_sum_so_that_micro_batches_change_nothing(teacher):
    student = BertForSequenceClassification.from_pretrained(teacher).eval()
    names = {"my_student.confident": 2.0, "my_student.SentenceVectors": 1.0}
    config = ObjectiveConfig(custom=names, custom_layers=True)

    objective = Objective(student, config, [(0, 0), (4, 4)], 24)
    assert len(list(objective.custom_modules.parameters())) == 2
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50, (6, 7), generator=generator)
    batch = Batch(ids, torch.ones_like(ids), torch.zeros_like(ids))
    hidden = {layer: torch.randn(6, 7, 24, generator=generator) for layer in (0, 4)}
    signal = Signal(torch.randn(6, 2, generator=generator), hidden)
    counts = count(batch, "valid")
    whole = objective(batch, signal, counts)
    halves = []
    for part in (slice(0, 2), slice(2, 6)):
        some = Batch(batch.ids[part], batch.mask[part], batch.segments[part])
        of_some = Signal(signal.logits[part], {layer: each[part] for layer, each in hidden.items()})
        halves.append(objective(some, of_some, counts))
    for name in (*names, "loss"):
        torch.testing.assert_close(halves[0][name] + halves[1][name], whole[name])
    whole["loss"].backward()
    assert all(parameter.grad is not None for parameter in objective.custom_modules.parameters())


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            lambda own, teacher, batch: own.logits.sum(-1),
            r"returned shape \[2\]; return its sum over the rows",
        ),
        (lambda own, teacher, batch: 1.0, "returned float; return its sum"),
        (
            lambda own, teacher, batch: teacher.logits.sum(),
            "has no gradient; compute it from the student's",
        ),
        (lambda own, teacher: own.logits.sum(), "failed: TypeError: .*takes 2 positional arguments"),
        (
            lambda own, teacher, batch: own.logits.sum() / {}["a"],
            r"failed: KeyError: 'a' \(.*test_own_student\.py:",
        ),
    ],
)
def test_a_term_that_does_not_work_is_named(teacher, term, message):
    student = BertForSequenceClassification.from_pretrained(teacher).eval()

    objective = Objective(student, ObjectiveConfig(custom={"my_student.confident": 1.0}), [], 0)
    objective.custom["my_student.confident"] = term
    ids = torch.ones(2, 3, dtype=torch.long)
    batch = Batch(ids, torch.ones_like(ids), torch.zeros_like(ids))
    with pytest.raises(ValueError, match=f"^objective.custom: my_student.confident {message}"):
        objective(batch, Signal(torch.ones(2, 2)), count(batch, "valid"))


def test_a_later_stages_term_is_looked_for_before_the_first_trains(teacher, tiny_task, tmp_path):
    given = config(teacher, tiny_task, custom={"my_student.nope": 1.0})
    with pytest.raises(ValueError, match=r"objective\.custom: my_student has no nope"):
        run_here("task", given, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--student.cls nowhere_at_all.Student", "student.cls: no module nowhere_at_all"),
        ("--student.cls Student", "give MODULE.NAME"),
        ("--student.cls my_student.ConvStudent --student.kind cnn", "student.kind: student.cls is given"),
        ("--student.arguments '{width: 3}'", "student.arguments: read only with a class given by"),
        ("--prediction.objective.custom '{my_student.confident: 0}'", "with 0.0; this job takes"),
        ("--prediction.objective.custom_layers", "there is no custom term"),
        (
            "--student.cls my_student.ConvStudent --prediction.objective.custom_layers "
            "--prediction.objective.custom '{my_student.confident: 1}'",
            "the student is a class of your own and has no layers to compare",
        ),
        ("--student.cls my_student.ConvStudent --student.path TEACHER", "holds no my_student.ConvStudent"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    options, message, folder, teacher, tiny_task, capsys
):
    data = f"--task.train {tiny_task}/train.tsv --task.dev {tiny_task}/dev.tsv --task.max_length 32"
    words = shlex.split(
        f"task --run runs/refused --teacher.path TEACHER --intermediate.epochs 0 {data} {options}"
    )
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "runs" / "refused").exists()


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        ("my_student.Missing", {}, "my_student has no Missing"),
        ("my_student.SentenceVectors", {}, "is no PreTrainedModel with a config_class"),
        ("transformers.BertForSequenceClassification", {}, "a model_type of its own"),
        ("my_student.ConvStudent", {"widht": 3}, "ConvConfig takes no widht"),
    ],
)
def test_what_only_the_process_can_see_is_one_line_too(
    cls, arguments, message, tmp_path, teacher, tiny_task
):
    given = config(teacher, tiny_task, logits=1.0)
    given.student = StudentConfig(cls=cls, arguments=arguments)
    with pytest.raises(ValueError, match=message):
        run_here("task", given, tmp_path / "run")


def test_a_configuration_takes_what_those_it_inherits_from_take(teacher, monkeypatch, tmp_path):
    import my_student

    class Narrow(my_student.ConvConfig):
        model_type = "my_narrow_conv"
        __module__ = "my_student"

    monkeypatch.setattr(my_student.ConvStudent, "config_class", Narrow)
    given = StudentConfig(cls="my_student.ConvStudent", arguments={"width": 16})
    task = TaskConfig("train.tsv", "dev.tsv")
    model, _ = build_student(given, teacher, task, ["negative", "positive"], tmp_path)
    assert model.config.width == 16
    with pytest.raises(ValueError, match=r"student\.arguments: Narrow takes no widht"):
        build_student(replace(given, arguments={"widht": 16}), teacher, task, ["a", "b"], tmp_path)


def test_general_distillation_takes_no_class_and_no_term_of_logits(teacher, tiny_shards):
    given = GeneralConfig(
        TeacherConfig(teacher), tiny_shards, student=StudentConfig(cls="my_student.ConvStudent")
    )
    with pytest.raises(ValueError, match="of your own classes have not"):
        check("general", given, 1)
    given.student = StudentConfig(layers=2, hidden_size=24, heads=2, intermediate_size=48)
    given.stage.objective.custom = {"my_student.confident": 1.0}
    given.stage.batch_size = 8
    with pytest.raises(ValueError, match="there are no logits here"):
        check("general", given, 1)


def test_an_exported_file_answers_without_the_class_and_torch_does_not(tmp_path, teacher):
    """Of what is checked; the guide's commands below run it."""
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").touch()
    own = {"model_type": "my_conv", "architectures": ["ConvStudent"], "id2label": {"0": "bad", "1": "good"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    copy_tokenizer(teacher, tmp_path)
    check("predict", PredictConfig(str(tmp_path), runtime="onnx"), 1)
    with pytest.raises(ValueError, match="is of type my_conv, without num_hidden_layers"):
        check("predict", PredictConfig(str(tmp_path)), 1)


def test_the_card_of_an_exported_class_says_how_to_load_it(folder, teacher, tmp_path):
    from my_student import ConvConfig, ConvStudent

    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ConvStudent(ConvConfig(len(tiny_tokens()), width=16, **names)).save_pretrained(tmp_path / "student")
    copy_tokenizer(teacher, tmp_path / "student")
    given = ExportConfig(str(tmp_path / "student"), classes=["my_student.ConvStudent"])
    run_here("export", given, tmp_path / "run")
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    snippets = python_in(card.replace("DIR", str(tmp_path / "run" / "model")))
    assert len(snippets) == 2
    said = []
    for snippet in snippets:  # each where nobody has registered the class
        words = [sys.executable, "-c", snippet + "print(logits.tolist())"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.append(torch.tensor(json.loads(done.stdout)))
    torch.testing.assert_close(said[0], said[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_guides_commands_run_as_they_stand(folder, teacher, tiny_task):
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_bytes((tiny_task / name).read_bytes())
    lines = [line.partition("distillery ")[2] for line in indented(GUIDE) if "distillery " in line]
    assert len(lines) == 6
    for line in lines:
        shape = " --student.heads 2 --student.hidden_size 24 --processes 2 --record.log_every 3" * (
            "--student.layers" in line
        )
        few = {"task": " --task.max_length 32", "predict": " --max_length 32"}
        few = few.get(line.split()[0], " --latency_repeats 3")
        words = [sys.executable, "-m", "launcher.cli", *shlex.split(line + few + shape)]
        text = {"input": "the soup was good .\n"}
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, **text)
        assert done.returncode == 0, done.stderr[-2000:]
        if line.startswith("predict"):  # without the class
            assert json.loads(done.stdout)["label"] in ("negative", "positive"), done.stderr
    metrics = Path("runs/own_student/vectors/metrics.jsonl").read_text()
    rows = [json.loads(row) for row in metrics.splitlines()]
    losses = [
        row["loss/my_student.SentenceVectors"]
        for row in rows
        if "lr" in row and row["stage"] == "intermediate"
    ]
    assert losses[-1] < losses[0]
    predict = "predict --model runs/own_student/conv/student --classes [my_student.ConvStudent]"
    words = [sys.executable, "-m", "launcher.cli", *predict.split()]
    done = subprocess.run(words, capture_output=True, text=True, check=False, **text)
    assert json.loads(done.stdout)["label"] in ("negative", "positive"), done.stderr
