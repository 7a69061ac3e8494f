"""The whole way by the user's door, on tiny data: every job a command, every run folder whole."""

import json
import math
import random
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from data_pipeline.grammar import NEGATIVE, POSITIVE
from data_pipeline.settings import TaskConfig
from distill.schedule import factor
from distill.settings import (
    EvaluateConfig,
    FinetuneConfig,
    GeneralConfig,
    ObjectiveConfig,
    OptimizerConfig,
    StageConfig,
    StudentConfig,
    TaskDistillConfig,
    TeacherConfig,
)
from tests.processes import DISTILLERY, run_here, typed

FIGURES = {"job", "status", "finished", "wall_s", "cpu_hours", "gpu_hours"}
TRAINED = FIGURES | {"steps", "processes", "device"}
PREGENERATED = {"slice", "pieces", "text_mb", "making_s", "sequences", "tokens", "documents"}
JOBS = ["pregenerate", "general", "finetune", "task", "evaluate"]


def distillery(folder: Path, job: str, **settings: Any) -> str:
    """Type a command in `folder`; returns what it printed. A double underscore stands for a dot."""
    arguments = [f"--{name.replace('__', '.')}={value}" for name, value in settings.items()]
    done = typed([DISTILLERY, job, *arguments], folder)
    assert "leaked" not in done.stderr  # what triton's binding says of modules that the end finds frozen
    return done.stdout


@pytest.fixture(scope="module")
def way(tmp_path_factory, tiny_corpus, tiny_model, tiny_task) -> Path:
    """The folder in which every command was typed, one after another; runs are below runs/."""
    folder = tmp_path_factory.mktemp("way")
    task = {"task__train": tiny_task / "train.tsv", "task__dev": tiny_task / "dev.tsv"}
    seldom = {"record__log_every": 2, "record__save_every": 100}
    distillery(
        folder,
        "pregenerate",
        corpus__files=json.dumps([tiny_corpus]),
        tokenizer=tiny_model,
        packing__max_length=32,
        rows_per_block=16,
    )
    distillery(
        folder,
        "general",
        processes=2,
        teacher__path=tiny_model,
        shards="runs/pregenerate/shards",
        student__layers=2,
        student__hidden_size=24,
        student__heads=4,
        student__intermediate_size=48,
        stage__batch_size=16,
        record__profile=2,
        **seldom,
    )
    distillery(folder, "finetune", model=tiny_model, **task, stage__epochs=1, **seldom)
    distillery(
        folder,
        "task",
        teacher__path="runs/finetune/model",
        student__path="runs/general/student",
        **task,
        intermediate__epochs=1,
        prediction__epochs=1,
        **seldom,
    )
    models = {"teacher": ["runs/finetune/model"], "student": ["runs/task/student"]}
    table = distillery(folder, "evaluate", models=json.dumps(models), **task, latency_repeats=3)
    (folder / "table.txt").write_text(table)
    distillery(folder, "report", runs=json.dumps([f"runs/{job}" for job in JOBS[1:]]), out="report.html")
    return folder


def summary(way: Path, job: str) -> dict[str, Any]:
    return json.loads((way / "runs" / job / "summary.json").read_text())


def metrics(way: Path, job: str, split: str) -> list[dict[str, Any]]:
    lines = (way / "runs" / job / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


@pytest.mark.parametrize(
    ("job", "keys"),
    [
        ("pregenerate", FIGURES | PREGENERATED),
        ("general", TRAINED | {"notes"}),
        ("finetune", TRAINED | {"best"}),
        ("task", TRAINED | {"best", "teacher"}),
        ("evaluate", FIGURES | {"rows"}),
    ],
)
def test_a_summary_says_what_was_done(way, job, keys):
    found = summary(way, job)
    assert found.keys() - {"cpu_wh", "gpu_wh"} == keys  # which some machines tell
    assert (found["job"], found["status"]) == (job, "finished")


@pytest.mark.parametrize("job", JOBS)
def test_a_run_folder_says_what_was_asked(way, job):
    folder = way / "runs" / job
    assert (folder / "command.txt").read_text().split()[:2] == ["distillery", job]
    assert {"torch", "commit", "hardware"} <= json.loads((folder / "versions.json").read_text()).keys()
    assert (folder / "config.yaml").is_file()


@pytest.mark.parametrize("job", JOBS)
def test_nothing_half_written_is_left(way, job):
    assert not [p for p in (way / "runs" / job).rglob("*") if p.suffix in (".partial", ".old")]


def test_a_command_writes_only_into_its_run_folder(way):
    assert {path.name for path in way.iterdir()} == {"runs", "report.html", "table.txt"}
    assert {path.name for path in (way / "runs").iterdir()} == set(JOBS)


@pytest.mark.parametrize(
    ("job", "terms"),
    [
        ("general", {"general": {"attention", "hidden"}}),
        ("finetune", {"finetune": {"labels"}}),
        ("task", {"intermediate": {"attention", "hidden"}, "prediction": {"logits"}}),
    ],
)
def test_metrics_name_every_term_of_a_stage(way, job, terms):
    rows = metrics(way, job, "train")
    assert list(dict.fromkeys(row["stage"] for row in rows)) == list(terms)
    for row in rows:
        parts = {name.removeprefix("loss/") for name in row if name.startswith("loss/")}
        assert parts == terms[row["stage"]]
        assert row["loss"] == pytest.approx(sum(row[f"loss/{part}"] for part in parts), rel=1e-5)
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
        assert {"step", "epoch", "time", "lr", "sequences_per_s", "tokens_per_s"} <= row.keys()
        assert 0 < row["mfu"] <= 1
        assert row["peak_memory_mb"] > 50


@pytest.mark.parametrize(
    ("job", "stage", "config"),
    [
        ("general", "general", GeneralConfig("t", "s").stage),
        ("finetune", "finetune", FinetuneConfig("m", TaskConfig("t", "d")).stage),
        ("task", "prediction", TaskDistillConfig(TeacherConfig("t"), TaskConfig("t", "d")).prediction),
    ],
)
def test_metrics_tell_the_schedules_rate(way, job, stage, config):
    rows = [row for row in metrics(way, job, "train") if row["stage"] == stage]
    total = rows[-1]["step"]
    rates = [config.optimizer.lr * factor(config.schedule, row["step"] - 1, total) for row in rows]
    assert len(set(rates)) > 1
    assert [row["lr"] for row in rows] == pytest.approx(rates)


def test_a_profile_is_a_trace_of_the_steps_asked_for(way):
    trace = json.loads((way / "runs" / "general" / "trace-general.json").read_text())
    steps = {event["name"] for event in trace["traceEvents"] if "ProfilerStep" in event.get("name", "")}
    assert len(steps) == 2


def test_metrics_come_every_second_step_and_at_the_end(way):
    last = summary(way, "general")["steps"]
    steps = [row["step"] for row in metrics(way, "general", "train")]
    assert steps == sorted({*range(2, last + 1, 2), last})


def test_two_processes_count_every_sequence_once(way):
    found = summary(way, "general")
    assert found["processes"] == 2
    assert found["steps"] == summary(way, "pregenerate")["sequences"] // 16


@pytest.mark.parametrize(("job", "stage"), [("finetune", "finetune"), ("task", "prediction")])
def test_the_best_on_dev_is_in_the_summary(way, job, stage):
    rows = metrics(way, job, "dev")
    assert {row["stage"] for row in rows} == {stage}
    assert summary(way, job)["best"]["accuracy"] == max(row["accuracy"] for row in rows)


def test_the_general_student_is_a_plain_encoder(way):
    model = AutoModel.from_pretrained(way / "runs" / "general" / "student")
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 24)
    assert model.dtype == torch.float32


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_other_tools_predict_what_evaluate_wrote(way, tiny_task, name):
    folder = way / "runs" / {"teacher": "finetune/model", "student": "task/student"}[name]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = (tiny_task / "dev.tsv").read_text().splitlines()[1:]
    sentences = [line.split("\t")[0] for line in lines]
    with torch.no_grad():
        logits = model(**tokenizer(sentences, padding=True, return_tensors="pt")).logits
    file = way / "runs" / "evaluate" / f"predictions-{name}.jsonl"
    written = [json.loads(line) for line in file.read_text().splitlines()]
    torch.testing.assert_close(torch.tensor([w["logits"] for w in written]), logits, rtol=0, atol=1e-5)
    assert [w["label"] for w in written] == [model.config.id2label[i] for i in logits.argmax(1).tolist()]


def test_the_teacher_measures_the_same_in_every_job(way):
    best = summary(way, "finetune")["best"]["accuracy"]
    rows = {row["name"]: row for row in summary(way, "evaluate")["rows"]}
    assert rows["teacher"]["accuracy_mean"] == pytest.approx(best)
    assert rows["student"]["accuracy_mean"] == pytest.approx(summary(way, "task")["best"]["accuracy"])


def test_evaluate_compares_size_and_speed(way):
    teacher, student = summary(way, "evaluate")["rows"]
    assert student["parameters"] < teacher["parameters"]
    assert teacher["latency_ms_p50"] > 0
    assert teacher["speedup"] == 1
    table = (way / "table.txt").read_text()
    assert "teacher" in table
    assert "student" in table


def test_the_report_shows_every_run(way):
    text: list[str] = []
    parser = HTMLParser()
    parser.handle_data = text.append
    parser.feed((way / "report.html").read_text(encoding="utf-8"))
    assert {"Training: general", "Training: finetune", "Training: prediction"} <= set(text)


@pytest.mark.parametrize("job", ["general", "finetune", "task", "evaluate"])
def test_a_finished_job_leaves_its_own_report(way, job):
    assert (way / "runs" / job / "report.html").is_file()


# ---- regression


def write_scores(path: Path, examples: int, seed: int) -> str:
    """Sentences of two words, with the share of the first of them as their score."""
    rng, words = random.Random(seed), (POSITIVE[0], NEGATIVE[0])
    lines = ["score\tsentence"]
    for _ in range(examples):
        sentence = rng.choices(words, k=rng.randint(3, 9))
        lines.append(f"{sentence.count(words[0]) / len(sentence):.3f}\t{' '.join(sentence)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def regression(tmp_path_factory, tiny_model) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A teacher and a student of a task of numbers, and their evaluation; summaries by job."""
    folder = tmp_path_factory.mktemp("regression")
    task = TaskConfig(
        train=write_scores(folder / "train.tsv", 96, 0),
        dev=write_scores(folder / "dev.tsv", 30, 1),
        label="score",
        kind="regression",
    )

    def stage(epochs: float, **terms: float) -> StageConfig:
        objective, optimizer = ObjectiveConfig(**terms), OptimizerConfig(lr=3e-3)
        # Measured at the end alone: correlation is blind to scale, and picks teachers too early.
        return StageConfig(epochs, 16, objective, optimizer, evaluate_every=10**6)

    teacher, student = str(folder / "teacher" / "model"), str(folder / "task" / "student")
    return folder, {
        "finetune": run_here(
            "finetune", FinetuneConfig(tiny_model, task, stage=stage(16, labels=1.0)), folder / "teacher"
        ),
        "task": run_here(
            "task",
            TaskDistillConfig(
                TeacherConfig(teacher, precision="fp32"),
                task,
                StudentConfig(layers=2, hidden_size=24, heads=4, intermediate_size=48),
                intermediate=replace(stage(1, attention=1.0, hidden=1.0), evaluate_every=None),
                prediction=stage(12, logits=1.0),
            ),
            folder / "task",
        ),
        "evaluate": run_here(
            "evaluate",
            EvaluateConfig({"teacher": [teacher], "student": [student]}, task, latency_repeats=2),
            folder / "evaluate",
        ),
    }


@pytest.mark.parametrize("job", ["finetune", "task"])
def test_regression_is_measured_by_correlations(regression, job):
    best = regression[1][job]["best"]
    assert best.keys() == {"pearson", "spearman", "pearson_spearman", "step"}
    assert best["pearson_spearman"] == pytest.approx((best["pearson"] + best["spearman"]) / 2)


@pytest.mark.parametrize("job", ["finetune", "task"])
def test_regression_learns(regression, job):
    """The student knows the scores from the teacher alone."""
    assert regression[1][job]["best"]["pearson"] > 0.5


def test_regression_evaluates_as_it_trained(regression):
    found = {row["name"]: row for row in regression[1]["evaluate"]["rows"]}
    for name, job in (("teacher", "finetune"), ("student", "task")):
        assert found[name]["metric"] == "pearson_spearman"
        expected = regression[1][job]["best"]["pearson_spearman"]
        assert found[name]["accuracy_mean"] == pytest.approx(expected, abs=1e-6)


def test_regression_predicts_one_number_for_each_example(regression):
    lines = (regression[0] / "evaluate" / "predictions-student.jsonl").read_text().splitlines()
    assert len(lines) == 30
    assert all(len(json.loads(line)["logits"]) == 1 and "label" not in json.loads(line) for line in lines)


def test_a_regression_student_loads_with_one_output(regression):
    model = AutoModelForSequenceClassification.from_pretrained(regression[0] / "task" / "student")
    assert model.config.num_labels == 1
    assert model.config.problem_type == "regression"


def test_relations_teach_a_student_of_other_heads(tmp_path, tiny_model, tiny_shards):
    distillery(
        tmp_path,
        "general",
        teacher__path=tiny_model,
        shards=tiny_shards,
        student__layers=2,
        student__hidden_size=24,
        student__heads=3,
        student__intermediate_size=48,
        stage__objective__attention=0,
        stage__objective__hidden=0,
        stage__objective__relation=1,
        stage__objective__relation_heads=8,
        stage__objective__layer_map="last",
        stage__optimizer__lr=1e-2,
        stage__batch_size=16,
        stage__epochs=6,
        record__log_every=5,
    )
    losses = [row["loss/relation"] for row in metrics(tmp_path, "general", "train")]
    assert losses[-1] < losses[0] / 2
    assert (
        AutoModel.from_pretrained(tmp_path / "runs" / "general" / "student").config.num_attention_heads == 3
    )
