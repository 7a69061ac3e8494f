"""Students of words, stored outputs, ensembles, tasks of every kind and teachers of every family."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from data_pipeline.grammar import write_task
from data_pipeline.settings import TaskConfig, WordsConfig
from data_pipeline.tasks import encode_split, read_examples
from data_pipeline.vocabulary import copy_tokenizer, load_vocabulary
from distill.measure import predict
from distill.outputs import splits
from distill.predict import run as answer
from distill.preemption import Stopped
from distill.settings import (
    EvaluateConfig,
    FinetuneConfig,
    LabelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PredictConfig,
    StageConfig,
    StudentConfig,
    TaskDistillConfig,
    TeacherConfig,
)
from launcher import jobs
from launcher.rank import execute
from tests.helpers import tiny_tokens
from tests.processes import run_here

LABELS = ["negative", "positive"]
MSE = ObjectiveConfig(logits_mse=1.0)


def stage(epochs: float, lr: float = 1e-3, **terms: float) -> StageConfig:
    return StageConfig(epochs, 32, ObjectiveConfig(**terms), OptimizerConfig(lr=lr))


def random_teacher(folder: Path, tokenizer: str, family: str = "bert", labels: list[str] = LABELS) -> str:
    """A tiny classifier with random weights that answer differently from text to text."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    special = {name: number for number, name in enumerate(("pad", "unk", "cls", "sep", "mask"))}
    ids = {f"{name}_token_id": number for name, number in special.items() if name in ("pad", "cls", "sep")}
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = AutoConfig.for_model(family, vocab_size=len(tiny_tokens()), **shape, **names, **ids)
    config.initializer_range = 0.5
    torch.manual_seed(len(family))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)
    return str(folder)


@pytest.fixture(scope="module")
def task(tiny_task) -> TaskConfig:
    return TaskConfig(train=str(tiny_task / "train.tsv"), dev=str(tiny_task / "dev.tsv"), max_length=32)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_tokenizer) -> str:
    return random_teacher(tmp_path_factory.mktemp("teacher"), tiny_tokenizer)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, task, teacher) -> Path:
    """The run folder of a label job, and its summary inside."""
    folder = tmp_path_factory.mktemp("label") / "run"
    run_here("label", LabelConfig(TeacherConfig(teacher, "fp32"), task, rows_per_file=64), folder)
    return folder


def stored(folder: Path) -> np.ndarray:
    """The training examples' logits."""
    from safetensors.numpy import load_file

    files = sorted((folder / "outputs" / "train").glob("*.safetensors"))
    return np.concatenate([load_file(file)["logits"] for file in files])


def logits_of(path: str, task: TaskConfig) -> np.ndarray:
    """A model's answers to the training file, straight."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    return predict(model, encode_split(task.train, task, load_vocabulary(path), LABELS)).numpy()


# ---- stored outputs


def test_label_writes_what_the_teacher_says(labelled, task, teacher):
    np.testing.assert_allclose(stored(labelled), logits_of(teacher, task), rtol=1e-4, atol=1e-5)
    summary = json.loads((labelled / "summary.json").read_text())
    assert summary["examples"] == {"train": 200, "dev": 64}
    assert 0 <= summary["teacher"]["accuracy"] <= 1


def test_a_killed_labelling_goes_on_where_it_stopped(labelled, tmp_path, task, teacher):
    folder = tmp_path / "run"
    shutil.copytree(labelled, folder)
    train = folder / "outputs" / "train"
    for name in ("manifest.json", "logits-00000128.safetensors"):
        (train / name).unlink()
    before = {path.name: path.stat().st_mtime_ns for path in train.glob("*.safetensors")}
    (folder / "summary.json").unlink()
    config = LabelConfig(TeacherConfig(teacher, "fp32"), task, rows_per_file=64)
    execute("label", config, folder)
    assert {name: (train / name).stat().st_mtime_ns for name in before} == before
    np.testing.assert_array_equal(stored(folder), stored(labelled))


def test_a_labelling_stops_between_files_where_it_is_asked_to(labelled, tmp_path, task, teacher):
    config, folder = LabelConfig(TeacherConfig(teacher, "fp32"), task, rows_per_file=64), tmp_path / "run"
    with patch("distill.label.asked", side_effect=[False, True]), pytest.raises(Stopped, match="as asked"):
        run_here("label", config, folder)
    written = [path.name for path in (folder / "outputs" / "train").glob("*.safetensors")]
    assert written == ["logits-00000000.safetensors"]
    execute("label", config, folder)
    np.testing.assert_array_equal(stored(folder), stored(labelled))


@pytest.mark.parametrize("change", ["precision", "damage", "none"])
def test_a_labelling_keeps_what_is_whole_and_of_its_precision(
    labelled, tmp_path, task, teacher, capsys, change
):
    folder = tmp_path / "run"
    shutil.copytree(labelled, folder)
    (folder / "summary.json").unlink()
    train = folder / "outputs" / "train"
    file = train / "logits-00000064.safetensors"
    if change == "damage":
        file.write_bytes(file.read_bytes()[:-4] + b"oops")
    before = file.stat().st_mtime_ns
    precision: Any = {"precision": "bf16", "damage": "fp32", "none": "auto"}[change]
    execute("label", LabelConfig(TeacherConfig(teacher, precision), task, rows_per_file=64), folder)
    assert (file.stat().st_mtime_ns == before) == (change == "none")
    said = capsys.readouterr().err
    if change == "precision":
        assert "teacher on dev (in bf16): accuracy" in said
        assert json.loads((train / "manifest.json").read_text())["precision"] == ["bf16"]
        assert np.abs(stored(folder) - stored(labelled)).max() > 0
    else:
        np.testing.assert_allclose(stored(folder), stored(labelled), atol=1e-5 if change == "damage" else 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("precision", r'was made in \["fp32"\], and teacher.precision is int8'),
        ("length", "was made with another text or max_length"),
        ("teacher", "was made with another teacher"),
        ("data", "was made with another text or max_length"),
        ("damage", "is missing or damaged"),
        ("unfinished", "holds no finished outputs"),
    ],
)
def test_stale_outputs_are_refused(labelled, tmp_path, task, teacher, change, message):
    outputs = tmp_path / "outputs"
    shutil.copytree(labelled / "outputs", outputs)
    if change == "length":
        task = replace(task, max_length=16)
    if change == "data":
        text = Path(task.train).read_text().replace("was", "is")
        (tmp_path / "train.tsv").write_text(text)
        task = replace(task, train=str(tmp_path / "train.tsv"))
    if change == "teacher":
        shutil.copytree(teacher, tmp_path / "other")
        config = json.loads((tmp_path / "other" / "config.json").read_text())
        (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
        teacher = str(tmp_path / "other")
    file = outputs / "train" / "logits-00000064.safetensors"
    if change == "damage":
        file.write_bytes(file.read_bytes()[:-4] + b"oops")
    if change == "unfinished":
        (outputs / "dev" / "manifest.json").unlink()
    config = TaskDistillConfig(
        TeacherConfig(teacher, "int8" if change == "precision" else "auto", outputs=str(outputs)),
        task,
        StudentConfig(kind="bilstm"),
        prediction=stage(1),
    )
    config.prediction.objective = MSE
    with pytest.raises(ValueError, match=message):
        jobs.check("task", config, 1)


def test_stored_outputs_teach_as_the_teacher_beside_does(labelled, tmp_path, task, teacher):
    """A transformer learns the same from either, to the last bit of the loss's fp32."""
    shape = StudentConfig(layers=1, hidden_size=8, heads=2, intermediate_size=16)
    found = []
    for name, outputs in (("beside", None), ("stored", str(labelled / "outputs"))):
        config = TaskDistillConfig(
            TeacherConfig(teacher, outputs=outputs, precision="fp32"),
            task,
            shape,
            intermediate=stage(0),
            prediction=stage(1, logits=1.0),
        )
        run_here("task", config, tmp_path / name)
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        found.append([row["loss"] for row in rows if row["split"] == "train"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# ---- students of words


@pytest.fixture(scope="module")
def bilstm(tmp_path_factory, labelled, task, teacher) -> Path:
    """A student of words distilled from stored logits."""
    folder = tmp_path_factory.mktemp("bilstm") / "run"
    config = TaskDistillConfig(
        TeacherConfig(teacher, outputs=str(labelled / "outputs")),
        task,
        StudentConfig(kind="bilstm", words=WordsConfig(size=16)),
        prediction=stage(8, 3e-3, logits_mse=1.0),
    )
    config.record.log_every = 6
    run_here("task", config, folder)
    return folder


def test_a_student_of_words_learns_the_teachers_logits(bilstm):
    rows = map(json.loads, (bilstm / "metrics.jsonl").read_text().splitlines())
    losses = [row["loss/logits_mse"] for row in rows if row["split"] == "train"]
    assert losses[-1] < losses[0] / 2


def test_its_folder_predicts_what_evaluate_wrote(bilstm, tmp_path, task, teacher):
    student = str(bilstm / "student")
    models = {"teacher": [teacher], "student": [student]}
    found = run_here("evaluate", EvaluateConfig(models, task, latency_repeats=2), tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForSequenceClassification.from_pretrained(student).eval()
    sentences = read_examples(task.dev, task).firsts
    with torch.no_grad():
        logits = model(**tokenizer(sentences, padding=True, return_tensors="pt")).logits
    lines = (tmp_path / "run" / "predictions-student.jsonl").read_text().splitlines()
    written = torch.tensor([json.loads(line)["logits"] for line in lines])
    torch.testing.assert_close(written, logits, rtol=0, atol=1e-5)
    row = found["rows"][1]
    confusion = np.array(row["confusion"])
    assert np.trace(confusion) / confusion.sum() == pytest.approx(row["accuracy_mean"])
    assert row["classes"]["positive"]["support"] == confusion[1].sum()
    assert row["latency_ms_p95"] >= row["latency_ms_p50"] > 0
    assert row["sequences_per_s_32"] > 0
    assert row["flops"] > 0
    assert "confusion" in (tmp_path / "run" / "confusion-student.svg").read_text()
    assert found["rows"][0]["speedup_32"] == 1


@torch.no_grad()
def test_a_folder_in_fp16_answers_in_fp32(tmp_path, task, teacher, capsys):
    half = str(tmp_path / "half")
    AutoModelForSequenceClassification.from_pretrained(teacher, dtype=torch.float16).save_pretrained(half)
    copy_tokenizer(teacher, Path(half))
    text = read_examples(task.dev, task).firsts[0]
    inputs = AutoTokenizer.from_pretrained(half)(text, return_tensors="pt")
    whole = AutoModelForSequenceClassification.from_pretrained(half, dtype=torch.float32).eval()
    expected = whole(**inputs).logits[0]
    run_here("evaluate", EvaluateConfig({"half": [half]}, task, latency=False), tmp_path / "run")
    line = (tmp_path / "run" / "predictions-half.jsonl").read_text().splitlines()[0]
    torch.testing.assert_close(torch.tensor(json.loads(line)["logits"]), expected, rtol=0, atol=1e-5)
    (tmp_path / "text.txt").write_text(text + "\n")
    capsys.readouterr()
    answer(PredictConfig(half, input=str(tmp_path / "text.txt"), answers="jsonl"))
    said = json.loads(capsys.readouterr().out)["probabilities"]
    found = torch.tensor([said[label] for label in LABELS])
    torch.testing.assert_close(found, expected.softmax(-1), rtol=0, atol=1e-5)


def test_evaluate_measures_what_its_settings_say(bilstm, tmp_path, task, teacher):
    models = {"teacher": [teacher], "student": [str(bilstm / "student")]}
    config = EvaluateConfig(
        models, task, reference="student", latency_repeats=1, latency_batches=[2], predictions=False
    )
    first, second = run_here("evaluate", config, tmp_path / "run")["rows"]
    assert second["speedup_2"] == 1
    assert {name for name in first if name.startswith("latency")} == {
        "latency_ms_p50_2",
        "latency_ms_p95_2",
    }
    assert not [*(tmp_path / "run").glob("predictions-*")]
    assert json.loads((tmp_path / "run" / "disagreements.json").read_text())["reference"] == "student"


def test_a_student_of_words_teaches_others(bilstm, tmp_path, task, teacher):
    """A chain: and an ensemble with its own teacher, each reading its own tokens."""
    student = str(bilstm / "student")
    config = TaskDistillConfig(
        TeacherConfig(student, "fp32", ensemble={teacher: 3.0}),
        task,
        StudentConfig(kind="cnn", words=WordsConfig(size=8)),
        prediction=stage(1, logits_mse=1.0, labels=0.5),
    )
    run_here("task", config, tmp_path / "run")
    expected = (logits_of(student, task) + 3 * logits_of(teacher, task)) / 4
    np.testing.assert_allclose(stored(tmp_path / "run"), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["densenet_dsa", "mean_bilstm"])
def test_labels_alone_train_a_student_of_words(tmp_path, task, tiny_model, kind):
    shape = StudentConfig(kind=kind, words=WordsConfig(size=8, frozen=True))
    config = FinetuneConfig(tiny_model, task, shape, stage=stage(1, labels=1.0))
    run_here("finetune", config, tmp_path / "run")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    vectors = np.load(tmp_path / "run" / "vocabulary" / "vectors.npy")
    np.testing.assert_array_equal(model.embeddings.weight.detach().numpy(), vectors)


def test_a_model_remembers_the_length_it_was_trained_with(tmp_path, task, teacher, capsys):
    """`predict` cuts texts there by itself, and what measures it at another length is told."""
    short = replace(task, max_length=5)
    for name, config in (
        ("words", FinetuneConfig(teacher, short, StudentConfig(kind="cnn"), stage=stage(0.2, labels=1.0))),
        ("encoder", FinetuneConfig(teacher, short, stage=stage(0.2, labels=1.0))),
    ):
        run_here("finetune", config, tmp_path / name)
        model = str(tmp_path / name / "model")
        assert AutoTokenizer.from_pretrained(model).model_max_length == 5
        texts = read_examples(task.dev, task).firsts[:9]
        (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
        answers = []
        for length in (None, 5, 16):
            answer(PredictConfig(model, input=str(tmp_path / "texts.txt"), max_length=length))
            answers.append(capsys.readouterr().out)
        assert answers[0] == answers[1] != answers[2]
        jobs.check("evaluate", EvaluateConfig({"short": [model]}, task), 1)
        said = capsys.readouterr().err
        assert f"warning: models.short: {model} was trained with sequences of 5 tokens at most" in said
        jobs.check("evaluate", EvaluateConfig({"short": [model]}, short), 1)
        assert "warning" not in capsys.readouterr().err


def test_what_a_student_of_words_has_not_is_refused(bilstm, task, teacher):
    words = StudentConfig(kind="cnn")
    config = TaskDistillConfig(TeacherConfig(teacher), task, words, prediction=stage(1, attention=1.0))
    with pytest.raises(ValueError, match="has no layers to compare"):
        jobs.check("task", config, 1)
    pairs = EvaluateConfig({"student": [str(bilstm / "student")]}, replace(task, text_pair="label"))
    with pytest.raises(ValueError, match="reads single texts, and pairs are given"):
        jobs.check("evaluate", pairs, 1)
    chain = TaskDistillConfig(TeacherConfig(str(bilstm / "student")), task, prediction=stage(1, logits=1.0))
    with pytest.raises(ValueError, match="the teacher, is of whole words"):
        jobs.check("task", chain, 1)


def test_an_ensemble_of_unlike_labels_is_refused(tmp_path, tiny_tokenizer, task, teacher):
    other = random_teacher(tmp_path / "other", tiny_tokenizer, labels=LABELS[::-1])
    config = LabelConfig(TeacherConfig(teacher, ensemble={other: 1.0}), task)
    with pytest.raises(ValueError, match="members need the same in the same order"):
        jobs.check("label", config, 1)


# ---- teachers of every family


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "electra", "albert", "deberta", "deberta-v2", "modernbert", "nezha"]
)
def test_every_family_is_fine_tuned_and_labels(tmp_path, tiny_tokenizer, task, family):
    base = random_teacher(tmp_path / "base", tiny_tokenizer, family)
    run_here("finetune", FinetuneConfig(base, task, stage=stage(0.2, labels=1.0)), tmp_path / "tuned")
    tuned = str(tmp_path / "tuned" / "model")
    run_here("label", LabelConfig(TeacherConfig(tuned, precision="fp32"), task), tmp_path / "label")
    np.testing.assert_allclose(stored(tmp_path / "label"), logits_of(tuned, task), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "names", [["contradiction", "neutral", "positive"], ["LABEL_0", "LABEL_1", "LABEL_2"]]
)
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_classifier_of_another_task_is_fine_tuned(tmp_path, tiny_tokenizer, task, capsys, names, kind):
    base = random_teacher(tmp_path / "base", tiny_tokenizer, labels=names)
    if kind == "regression":
        scores = tmp_path / "scores.tsv"
        scores.write_text("sentence\tlabel\n" + "the soup was bland .\t2.5\n" * 40)
        task = replace(task, train=str(scores), dev=str(scores), kind=kind)
    config = FinetuneConfig(base, task, stage=stage(1, labels=1.0))
    run_here("finetune", config, tmp_path / "run")
    learns = LABELS if kind == "classification" else "one number"
    assert f"; here it learns {learns} instead\n" in capsys.readouterr().err
    tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert list(tuned.config.id2label.values()) == (LABELS if kind == "classification" else ["LABEL_0"])
    jobs.check("finetune", replace(config, model=str(tmp_path / "run" / "model")), 1)
    assert "here it learns" not in capsys.readouterr().err


def test_a_classifier_keeps_labels_that_the_data_lacks(tmp_path, tiny_tokenizer, task, capsys):
    names = ["negative", "neutral", "positive"]
    base = random_teacher(tmp_path / "base", tiny_tokenizer, labels=names)
    config = FinetuneConfig(base, task, stage=stage(0.2, labels=1.0))
    run_here("finetune", config, tmp_path / "run")
    assert "here it learns" not in capsys.readouterr().err
    tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert list(tuned.config.id2label.values()) == names


def test_a_family_that_hides_its_attention_says_so(tmp_path, tiny_tokenizer, task):
    teacher = random_teacher(tmp_path / "base", tiny_tokenizer, "deberta-v2")
    shape = StudentConfig(layers=1, hidden_size=8, heads=2, intermediate_size=16)
    config = TaskDistillConfig(
        TeacherConfig(teacher), task, shape, stage(1, attention=1.0), prediction=stage(0)
    )
    with pytest.raises(ValueError, match="reports no attention"):
        run_here("task", config, tmp_path / "run")
    config.intermediate = stage(1, hidden=1.0)
    run_here("task", config, tmp_path / "hidden")
    assert (tmp_path / "hidden" / "student" / "config.json").is_file()


# ---- tasks of every kind


def test_several_labels_each(tmp_path):
    """From jsonl with lists of labels: two topics, each told by a word of its own."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 320), ("dev", 64)):
        lines = []
        for flags in rng.integers(0, 2, (count, 2)):
            words = ["soup"] * flags[0] + ["driver"] * flags[1] + ["the", "was"]
            labels = [label for label, flag in zip(("food", "cars"), flags, strict=True) if flag]
            lines.append(json.dumps({"text": " ".join(rng.permutation(words)), "topics": labels}))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "dev")}
    task = TaskConfig(**files, text="text", label="topics", kind="multi_label")
    tuned = FinetuneConfig(None, task, StudentConfig(kind="cnn"), stage=stage(6, labels=1.0))
    assert run_here("finetune", tuned, tmp_path / "teacher")["best"]["f1_micro"] > 0.95
    teacher = TeacherConfig(str(tmp_path / "teacher" / "model"))
    student = TaskDistillConfig(
        teacher, task, StudentConfig(kind="bilstm"), prediction=stage(6, 3e-3, logits=1.0)
    )
    assert run_here("task", student, tmp_path / "student")["best"]["f1_micro"] > 0.9
    models = {"student": [str(tmp_path / "student" / "student")]}
    rows = run_here("evaluate", EvaluateConfig(models, task, latency=False), tmp_path / "e")["rows"]
    assert rows[0]["classes"]["food"]["support"] == sum(
        "food" in x for x in read_examples(task.dev, task).labels
    )
    line = json.loads((tmp_path / "e" / "predictions-student.jsonl").read_text().splitlines()[0])
    assert line["labels"] == [
        name for name, logit in zip(["cars", "food"], line["logits"], strict=True) if logit > 0
    ]


def test_matched_and_mismatched_are_measured_apart(tmp_path, task, teacher):
    write_task(tmp_path, train=80, dev=40, seed=5)
    both = replace(task, more_dev={"mismatched": str(tmp_path / "dev.tsv")})
    texts = "id\tsentence\n" + "".join(f"{i}\tthe soup was bland .\n" for i in range(3))
    (tmp_path / "ax.tsv").write_text(texts)
    config = EvaluateConfig(
        {"teacher": [teacher]}, both, latency=False, submit={"AX": str(tmp_path / "ax.tsv")}
    )
    row = run_here("evaluate", config, tmp_path / "run")["rows"][0]
    own = replace(task, dev=str(tmp_path / "dev.tsv"))
    alone = EvaluateConfig({"teacher": [teacher]}, own, latency=False)
    other = run_here("evaluate", alone, tmp_path / "other")["rows"][0]
    assert row["scores"][0]["accuracy_mismatched"] == other["scores"][0]["accuracy"]
    assert row["scores"][0]["accuracy"] == row["accuracy_mean"]
    lines = (tmp_path / "run" / "submission-teacher" / "AX.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    assert [line.split("\t")[0] for line in lines[1:]] == ["0", "1", "2"]
    assert {line.split("\t")[1] for line in lines[1:]} <= set(LABELS)


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_data_sets_of_datasets_are_read_by_their_columns(tmp_path, kind):
    features = datasets.Features(
        {
            "a": datasets.Value("string"),
            "y": datasets.ClassLabel(names=["no", "yes"]),
            "n": datasets.Value("int8"),
        }
    )
    rows = datasets.Dataset.from_dict({"a": ["one", "two"], "y": [1, 0], "n": [7, 8]}, features=features)
    path = tmp_path / ("data" if kind == "saved" else "data.parquet")
    rows.save_to_disk(str(path)) if kind == "saved" else rows.to_parquet(str(path))
    task = TaskConfig(str(path), str(path), text="a", label="y")
    assert read_examples(str(path), task).labels == ["yes", "no"]
    assert read_examples(str(path), replace(task, label="n")).labels == ["7", "8"]
    with pytest.raises(ValueError, match=r'has no column "b"; it has a, y, n'):
        read_examples(str(path), replace(task, text="b"))


def test_the_splits_of_a_task_are_its_files(task, teacher, tmp_path):
    assert list(splits(tmp_path, replace(task, more_dev={"x": task.dev}), TeacherConfig(teacher))) == [
        "train",
        "dev",
        "x",
    ]


def test_a_search_hears_of_every_measurement_with_the_share_that_is_done(tmp_path, task, teacher, labelled):
    """Two stages of two epochs and one, measured once an epoch where the loss has logits or labels."""
    config = TaskDistillConfig(
        teacher=TeacherConfig(teacher, outputs=str(labelled / "outputs")),
        task=task,
        student=StudentConfig(layers=1, hidden_size=16, heads=2, intermediate_size=16),
        intermediate=stage(2, labels=1.0),
        prediction=stage(1, logits=1.0),
    )
    folder, heard = tmp_path / "run", []
    run_here("task", config, folder, on_measure=lambda scores, share: heard.append((share, scores)))
    told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    dev = [row["accuracy"] for row in told if row["split"] == "dev"]
    assert [scores["accuracy"] for _, scores in heard] == dev
    assert [share for share, _ in heard] == pytest.approx([1 / 3, 2 / 3, 1])
