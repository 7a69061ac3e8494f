"""The report: one well-formed, self-contained page, whatever the run folders hold."""

import json
import math
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from data_pipeline.settings import TaskConfig
from distill.charts import (
    LIMIT,
    TOP,
    Frame,
    _label,
    confusion_chart,
    down_sample,
    linear_axis,
    log_axis,
    standalone,
)
from distill.disagreements import MOST, write_disagreements
from distill.measure import by_class
from distill.recorded_run import RecordedRun, read_metrics, read_run
from distill.report import ReportConfig, check, render, run

EVIL = '<script>alert("x")</script>'
ROWS = [
    ("teacher", 0.931, None, 1, 22_713_216, 90.9, 18.4, 1.0),
    ("student, both stages", 0.9012, 0.004, 3, 4_782_024, 19.1, 2.31, 8.0),
    ("student, general only", 0.8781, 0.006, 3, 4_782_024, 19.1, 2.33, 7.9),
    ("student, labels only", 0.842, 0.011, 3, 4_782_024, 19.1, 2.35, 7.8),
    (f"BiLSTM {EVIL}", 0.8455, 0.003, 3, 2_430_000, 9.7, 1.12, 16.4),
]
KEYS = ("name", "accuracy_mean", "accuracy_sd", "seeds", "parameters", "megabytes")
KEYS += ("latency_ms_p50", "speedup")


def write_run(path: Path, lines: list[dict[str, Any]], **summary: Any) -> None:
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "config.yaml").write_text(f"seed: 1\nout: {path.name}\nnote: '{EVIL}'\n")
    (path / "command.txt").write_text(f"distillery finetune --out runs/{path.name}\n")
    versions = {"torch": "2.13.0", "commit": "0f3c2d1", "hardware": "2 cores"}
    (path / "versions.json").write_text(json.dumps(versions))
    if summary:
        summary = {"status": "finished", "wall_s": 843.2, "cpu_hours": 0.47, "gpu_hours": 0.0} | (summary)
        (path / "summary.json").write_text(json.dumps(summary))


def training(stage: str, steps: int, terms: list[str], dev: float, seed: int) -> list[dict]:
    """The log of one stage, noisy and falling; `dev` is where the accuracy ends."""
    noise, lines = random.Random(seed), []
    for step in range(1, steps + 1):
        decay, common = math.exp(-3 * step / steps), {"stage": stage, "step": step}
        common |= {"epoch": step / steps, "time": 0.8 * step}
        losses = {f"loss/{t}": (0.2 + decay) / 4**i for i, t in enumerate(terms)}
        losses = {name: value * noise.uniform(0.85, 1.15) for name, value in losses.items()}
        speed = 100 + noise.gauss(0, 4)
        lines.append(
            {"split": "train", **common, "loss": sum(losses.values()), **losses}
            | {"lr": 5e-5 * min(step / (0.1 * steps), (steps - step) / (0.9 * steps))}
            | {"sequences_per_s": speed, "tokens_per_s": speed * 64}
        )
        if dev and step % (steps // 8) == 0:
            accuracy = dev - 0.1 * decay + noise.gauss(0, 0.003)
            lines.append({"split": "dev", **common, "accuracy": accuracy, "f1": accuracy - 0.01})
    return lines


def write_demo(path: Path) -> Path:
    """A run of the job `demo` with its sub-runs."""
    rows = [dict(zip(KEYS, row, strict=True)) | {"metric": "accuracy"} for row in ROWS]
    notes = ["Measured on a busy machine.", EVIL]
    write_run(path, [], job="demo", rows=rows, notes=notes)
    hidden = ["hidden", "attention"]
    write_run(path / "general", training("general", 3000, hidden, 0, 1), job="general", steps=3000)
    best = {"accuracy": 0.931}
    teacher = training("finetune", 800, ["labels"], 0.93, 2)
    write_run(path / "teacher", teacher, job="finetune", steps=800, best=best)
    for seed in range(3):
        lines = training("intermediate", 600, hidden, 0, seed)
        lines += training("prediction", 400, ["logits", "labels"], 0.9 + 0.004 * seed, seed + 9)
        done = {"job": "task", "steps": 1000, "best": {"accuracy": 0.9}} if seed < 2 else {}
        write_run(path / f"task-seed{seed}", lines, **done)
    return path


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return write_demo(tmp_path / "demo")


class Balance(HTMLParser):
    """Fails on a tag that is closed out of turn, and collects the text and the attributes."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_well_formed_and_self_contained(demo: Path, capsys) -> None:
    run(ReportConfig([str(demo)]))
    out = demo / "report.html"
    assert capsys.readouterr().out.strip() == str(out)
    assert not list(demo.glob("*.partial"))
    page = out.read_text(encoding="utf-8")
    parsed = Balance(page)
    assert not parsed.tags & {"script", "link", "img", "iframe", "image", "object"}
    assert not parsed.attributes & {"src", "href", "xlink:href", "onload"}
    assert not re.search(r"https?://|url\(|@import", page)
    assert len(page) < 1_000_000
    assert not re.search(r"\b(nan|None)\b", parsed.text)


def test_names_are_escaped(demo: Path) -> None:
    page = render([read_run(demo, f"demo {EVIL}")])
    assert "<script" not in page
    assert Balance(page).text.count(EVIL) >= 4  # name, row, note, configuration


def test_page_holds_the_numbers(demo: Path) -> None:
    text = Balance(render([read_run(demo, "demo")])).text
    shown = ["93.1", "90.1 ± 0.4", "4.8 M", "19.1", "2.31", "8.0×", "14 min 03 s", "0.470"]
    shown += ["unfinished", "torch: 2.13.0", "distillery finetune --out runs/demo"]
    shown += ["Training: general", "Training: prediction", "Dev set: f1", "accuracy 93.1"]
    assert [s for s in shown if s not in text] == []
    assert text.index("Results") < text.index("Training: finetune") < text.index("How to reproduce")


def test_runs_are_compared(demo: Path, tmp_path: Path) -> None:
    write_demo(tmp_path / "other" / "demo")
    both = [str(demo), str(tmp_path / "other" / "demo")]
    run(ReportConfig(both, out=str(tmp_path / "new" / "both.html")))
    text = Balance((tmp_path / "new" / "both.html").read_text(encoding="utf-8")).text
    assert all(f"{path}/task-seed1" in text for path in both)


def test_killed_last_line_is_noted(demo: Path) -> None:
    with (demo / "task-seed2" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "prediction", "spl')
    assert "last line of metrics.jsonl is cut off" in render([read_run(demo, "demo")])


def test_other_broken_line_is_refused(demo: Path) -> None:
    path = demo / "teacher" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], "oops", *lines[4:]]) + "\n")
    with pytest.raises(ValueError, match=r"teacher/metrics\.jsonl, line 5"):
        run(ReportConfig([str(demo)]))


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    lines = training("general", 50, ["hidden"], 0, 1)
    lines[7]["loss"], lines[9]["loss"] = math.nan, math.inf
    write_run(tmp_path / "run", lines)
    page = render([read_run(tmp_path / "run", "run")])
    assert "NaN or infinite: 2," in page
    assert not re.search(r'd="[^"]*(nan|inf)', page)


@pytest.mark.parametrize("lines", [[], [{"stage": "general", "split": "train"}], [{"stage": None}]])
def test_a_run_that_has_just_begun(tmp_path: Path, lines: list[dict]) -> None:
    write_run(tmp_path / "run", lines)
    assert "unfinished" in Balance(render([read_run(tmp_path / "run", "run")])).text


def test_wrong_folders_are_refused(tmp_path: Path, demo: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for runs, reason in [
        ([], "no run folder"),
        ([str(demo), str(tmp_path / "nowhere")], "nowhere is not a folder"),
        ([str(empty)], "empty has neither metrics.jsonl nor summary.json"),
    ]:
        with pytest.raises(ValueError, match=reason):
            check(ReportConfig(runs))
    with pytest.raises(ValueError, match="is a folder"):
        check(ReportConfig([str(demo)], out=str(empty)))


def test_resumed_steps_are_drawn_once(tmp_path: Path) -> None:
    lines = training("general", 20, ["hidden"], 0, 1)
    write_run(tmp_path / "run", lines + lines[10:])
    write_run(tmp_path / "straight", lines)
    pages = [render([read_run(tmp_path / n, "run")]) for n in ("run", "straight")]
    curves = [re.findall(r' d="([^"]*)"', page) for page in pages]
    assert curves[0] == curves[1]


def test_read_metrics_of_a_missing_file(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == ([], [])


def test_down_sampling_keeps_the_mean_and_the_order() -> None:
    points = [(float(x), math.sin(x)) for x in range(10_001)]
    few = down_sample(points)
    assert few == sorted(few)
    assert len(few) == LIMIT
    assert sum(y for _, y in few) / LIMIT == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    "values", [[0.0], [5e-5], [-3.0, 2.0], [91.2, 93.4], [0, 12_345], [7.0, 7.0], [1e-9, 1e9]]
)
def test_axes_hold_their_values(values: list[float]) -> None:
    axes = [linear_axis("", values), linear_axis("", values, snug=True)]
    axes += [log_axis("", values)] if min(values) > 0 else []
    for axis in axes:
        assert all(-1e-9 <= axis.at(v) <= 1 + 1e-9 for v in [*values, *axis.ticks])
        assert 2 <= len(axis.ticks) <= 12


@pytest.mark.parametrize(
    ("value", "ends"), [(100.0, (0, 100)), (94.6, (0, 100)), (-3.0, (-3, 0)), (0.0, (-1, 1))]
)
def test_an_axis_of_one_value_shows_no_accuracy_above_100(value, ends):
    axis = linear_axis("", [value])
    assert (axis.lo, axis.hi) == pytest.approx(ends)


def test_a_run_that_was_copied_ended_when_its_summary_says(tmp_path):
    write_run(tmp_path / "run", [], finished="2026-01-02T03:04:05+00:00")
    assert read_run(tmp_path / "run", "run").written == "2026-01-02 03:04 UTC"


# ---- by class


def test_classes_and_confusions_of_a_measured_model_are_shown(tmp_path):
    """Labels are a user's: they are escaped, and a long one is cut."""
    labels, counts = ["<b>", "a very long name of a class"], [[7, 1], [2, 30]]
    by_class = {
        name: {"precision": 0.5, "recall": 0.25, "f1-score": 1 / 3, "support": 8} for name in labels
    }
    row = {
        "name": "cnn",
        "metric": "accuracy",
        "accuracy_mean": 0.9,
        "classes": by_class | {"accuracy": 0.9},
    }
    (tmp_path / "summary.json").write_text(json.dumps({"rows": [row | {"confusion": counts}]}))
    page = render([read_run(tmp_path, "run")])
    assert "<b>" not in re.sub(r"<td[^>]*><b>[^<]*</b>", "", page)
    assert "0.3333" in page
    for text in ("&lt;b&gt; as a very long name of a class: 1", "cnn: confusion", "a very long n…"):
        assert text in page
    picture = standalone(confusion_chart("cnn", labels, counts))
    marks = ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}rect")
    shares = [float(mark.get("fill-opacity", "nan")) for mark in marks]
    assert shares == pytest.approx([0.75 * s for s in (7 / 8, 1 / 8, 2 / 32, 30 / 32)], abs=1e-3)


def test_a_confusion_of_many_classes_is_not_drawn():
    labels = [str(number) for number in range(61)]
    figures = {name: {"precision": 0.5, "recall": 0.5, "f1-score": 0.5, "support": 1} for name in labels}
    counts = [[1] * 61 for _ in labels]
    row = {"name": "cnn", "accuracy_mean": 0.5, "classes": figures, "confusion": counts}
    page = Balance(render([RecordedRun("one", summary={"rows": [row]})])).text
    assert "No picture of 61 classes; summary.json has the counts." in page
    assert "cnn: confusion" not in page
    assert confusion_chart("cnn", labels[:60], [line[:60] for line in counts[:60]])


def test_names_of_wide_characters_have_room():
    labels = ["非常に肯定的な評価です", "否定的"]
    picture = standalone(confusion_chart("cnn", labels, [[1, 2], [3, 4]]))
    texts = [mark for mark in ElementTree.fromstring(picture).iter() if mark.tag.endswith("text")]
    ends = {mark.text: float(mark.get("x", "nan")) for mark in texts if mark.get("text-anchor") == "end"}
    assert all(ends[label] >= 12 * len(label) for label in labels)  # of 12 pixels each
    frame = Frame(linear_axis("", [0, 1]), linear_axis("", [0, 1]), 480, 300)
    box = (400.0, 100.0, 410.0, 110.0)
    mark = ElementTree.fromstring(_label(labels[0], box, taken := [], frame))
    assert taken[0][2] - taken[0][0] >= 12 * len(mark.text or "")


def test_a_class_may_have_the_name_of_an_average():
    names = ["accuracy", "macro avg"]
    row = {"name": "cnn", "accuracy_mean": 0.5, **by_class(torch.eye(2), np.array([0, 1]), names)}
    assert list(row["classes"]) == names
    page = render([RecordedRun("one", summary={"rows": [row]})])
    assert [page.count(f">{name}</td>") for name in (*names, "weighted avg")] == [1, 2, 1]


def test_of_several_runs_classes_and_confusions_say_whose_they_are():
    by_class = {name: {"precision": 0.5, "recall": 0.5, "f1-score": 0.5, "support": 8} for name in "ab"}
    row = {"name": "cnn", "accuracy_mean": 0.5, "classes": by_class, "confusion": [[4, 4], [4, 4]]}
    runs = [RecordedRun(name, summary={"rows": [row]}) for name in ("one", "two")]
    alone, both = Balance(render(runs[:1])).text, Balance(render(runs)).text
    assert [name for name in ("one: cnn", "two: cnn") if name in alone] == []
    assert [both.count(f"{name}: cnn: confusion") for name in ("one", "two")] == [1, 1]
    assert [both.count(f"{name}: cnn") for name in ("one", "two")] == [2, 2]


# ---- accuracy against latency


@pytest.mark.parametrize(
    ("points", "joined"),
    [
        ([(4.0, 0.9), (1.0, 0.8)], [1, 0]),
        ([(4.0, 0.9), (2.0, 0.7), (1.0, 0.8), (0.5, 0.6)], [3, 2, 0]),
        ([(4.0, 0.9), (1.0, 0.95)], []),  # one beats all
        ([(4.0, 0.9)], []),
    ],
)
def test_the_line_joins_the_models_that_none_beats(points, joined):
    rows = [
        {"name": f"m{i}", "accuracy_mean": score, "latency_ms_p50": latency}
        for i, (latency, score) in enumerate(points)
    ]
    page = render([RecordedRun("run", summary={"rows": rows})])
    places = re.findall(r'<circle class="dot0" cx="([\d.]+)" cy="([\d.]+)" r="4">', page)
    assert len(places) == len(points) * (len(points) > 1)
    drawn = [line.split("L") for line in re.findall(r'class="line1" d="M([^"]+)"', page)]
    assert drawn == ([[" ".join(places[i]) for i in joined]] if joined else [])


def crosses(line: list[tuple[float, float]], left: float, top: float, right: float, bottom: float) -> bool:
    """Whether a line from left to right goes through a box."""
    along = [step / 200 for step in range(201)]
    return any(
        left < x0 + (x1 - x0) * t < right and top < y0 + (y1 - y0) * t < bottom
        for (x0, y0), (x1, y1) in pairwise(line)
        for t in along
    )


@pytest.mark.parametrize(
    "points",
    [
        [(5.45, 1.0, 0), (1.88, 0.9997, 0.0006), (1.84, 0.53, 0.02), (0.29, 0.501, 0)],
        [(50, 0.934, 0.002), (9, 0.92, 0.004), (0.8, 0.85, 0.004), (2, 0.8, 0.01), (0.03, 0.79, 0)],
        [(2.0**i, 0.5 + 0.1 * i, 0.05) for i in range(6)],
    ],
)
def test_a_share_ends_at_100_percent_and_the_line_crosses_no_name(points):
    """Every model has its name, and no bar leaves the plot."""
    rows = [
        {"name": f"a model {i}", "accuracy_mean": y, "accuracy_sd": sd, "latency_ms_p50": x}
        for i, (x, y, sd) in enumerate(points)
    ]
    page = render([RecordedRun("run", summary={"rows": rows})])
    chart = page[page.index("Accuracy against latency") :]
    chart = chart[: chart.index("</svg>")]
    ticks = [float(text) for text in re.findall(r'text-anchor="end">([\d.]+)</text>', chart)]
    assert max(ticks) <= 100
    bars = [float(top) for top in re.findall(r'class="line0" d="M[\d.]+ ([\d.]+)V', chart)]
    assert min(bars) >= TOP
    (path,) = re.findall(r'class="line1" d="M([^"]+)"', chart)
    line = [tuple(map(float, place.split())) for place in path.split("L")]
    names = re.findall(r'class="name" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">(a model \d)', chart)
    assert len(names) == len(bars) == len(points)
    for x, y, anchor, text in names:
        left = float(x) - 7 * len(text) * (anchor == "end")
        assert not crosses(line, left, float(y) - 9, left + 7 * len(text), float(y) + 2)


# ---- where they disagree


def answers(path: Path) -> TaskConfig:
    (path / "dev.csv").write_text(
        '"sentence","label"\n' + "".join(f'"text {i}","{"ab"[i % 2]}"\n' for i in range(50))
    )
    return TaskConfig(train="", dev=str(path / "dev.csv"))


def test_where_a_model_parts_from_the_teacher_the_surest_first(tmp_path):
    task = answers(tmp_path)
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(25, 1)  # always right
    student = teacher.clone()
    student[10], student[21], student[30] = (
        torch.tensor(row) for row in ([0.0, 3.0], [1.0, 0.0], [0.0, 9.0])
    )
    swapped = student.flip(1)  # the same answers of a model whose labels stand the other way round
    models = {"teacher": (teacher, ["a", "b"]), "one": (student, ["a", "b"]), "two": (swapped, ["b", "a"])}
    write_disagreements(tmp_path, task, models, "teacher")
    found = json.loads((tmp_path / "disagreements.json").read_text())
    for model in found["models"]:
        assert (model["count"], model["of"]) == (3, 50)
        assert [row["text"] for row in model["examples"]] == ["text 30", "text 10", "text 21"]
        assert model["examples"][0] == {
            "text": "text 30",
            "second": None,
            "label": "a",
            "reference": "a",
            "answer": "b",
        }
    write_disagreements(tmp_path, task, {"t": (teacher, ["a", "b"]), "o": (-teacher, ["a", "b"])}, "t")
    (model,) = json.loads((tmp_path / "disagreements.json").read_text())["models"]
    assert (model["count"], len(model["examples"])) == (50, MOST)


def test_several_labels_are_the_same_in_any_order(tmp_path):
    task = replace(answers(tmp_path), kind="multi_label")
    teacher = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).repeat(25, 1)
    models = {"teacher": (teacher, ["a", "b"]), "student": (teacher.flip(1), ["b", "a"])}
    write_disagreements(tmp_path, task, models, "teacher")
    (model,) = json.loads((tmp_path / "disagreements.json").read_text())["models"]
    assert model["count"] == 0


def test_disagreements_are_shown_and_escaped(tmp_path):
    example = {
        "text": f"one {EVIL}",
        "second": f"two {EVIL}",
        "label": EVIL,
        "reference": "<i>",
        "answer": EVIL,
    }
    model = {"name": f"student {EVIL}", "count": 1, "of": 40, "examples": [example]}
    content = {"reference": f"teacher {EVIL}", "kind": "classification", "models": [model]}
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "disagreements.json").write_text(json.dumps(content))
    page = render([read_run(tmp_path, "run")])
    assert "Where they disagree" in page
    assert "1 of 40 examples" in page
    assert "<script" not in page
    assert "<i>" not in page


def test_a_loss_of_one_term_is_drawn_once_for_several_runs_too(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, training("finetune", 40, ["labels"], 0.9, 0))
    page = render([read_run(tmp_path / name, name) for name in ("a", "b")])
    assert "Training loss" in page
    assert "Training loss: labels" not in page
