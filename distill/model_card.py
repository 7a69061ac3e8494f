"""The model card of an exported model: README.md as the Hugging Face hub reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData
from transformers import PretrainedConfig

from data_pipeline.model_folder import model_folder
from distill.custom import Named, load, name_of
from distill.recorded_run import read_run
from distill.settings import ExportConfig
from distill.table import percent

TASK = "text-classification"


def write_card(config: ExportConfig, model: PretrainedConfig, rows: list[dict[str, Any]], run: Path) -> str:
    """The card's text: metadata, figures, how to use it.

    Args:
        config: What was exported, and its task.
        model: The model's configuration.
        rows: A row for each form, as the table shows them; none without a task.
        run: The run folder, which says on what and by which command it was measured.
    """
    name = Path(config.model).resolve().parent.name + "-" + Path(config.model).name
    teacher = teacher_of(config.model)
    said = [f"# {name}", _what(model, teacher), _labels(model)]
    if rows:
        said += [_figures(rows, Path(_task_name(config)).name), _how_measured(config, rows, run)]
    said += [_in_transformers(model, config.classes), IN_ONNXRUNTIME]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["onnx", "knowledge-distillation" if teacher else TASK],
        model_name=name,
        eval_results=_results(config, rows) or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(said) + "\n"


def teacher_of(model: str) -> str | None:
    """The teacher that a run's own student learned from; None where nothing says so."""
    recipe = Path(model_folder(model)).resolve().parent / "config.yaml"
    if Path(model).name != "student" or not recipe.is_file():
        return None
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    teacher = settings.get("teacher") if isinstance(settings, dict) else None
    return teacher.get("path") if isinstance(teacher, dict) else None


def _shown(path: str) -> str:
    """A path without what is this machine's own."""
    return "/".join(Path(path).parts[-2:]) if Path(path).is_absolute() else path


def _task_name(config: ExportConfig) -> str:
    assert config.task is not None
    dev = config.task.dev.partition(",")[0].removeprefix("hub:")
    return dev if config.task.dev.startswith("hub:") else Path(dev).resolve().parent.name


def _results(config: ExportConfig, rows: list[dict[str, Any]]) -> list[EvalResult]:
    """The first row's figures as the hub's metadata has them."""
    if not rows:
        return []
    name = _task_name(config)
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=name,
            dataset_name=name,
            dataset_split="dev",
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for metric, value in rows[0]["scores"][0].items()
    ]


def _what(model: PretrainedConfig, teacher: str | None) -> str:
    kind = getattr(model, "kind", None)
    shape = model.model_type
    if kind:
        shape = f"a student of whole words, `{kind}`"
    elif hasattr(model, "num_hidden_layers"):
        shape = f"{model.model_type}, {model.num_hidden_layers} layers of width {model.hidden_size}"
    source = f" Distilled by Distillery from `{_shown(teacher)}`." if teacher else " Trained by Distillery."
    return f"A text classifier: {shape}.{source}"


def _labels(model: PretrainedConfig) -> str:
    if model.problem_type == "regression":
        return "It answers with one number."
    names = ", ".join(f"`{name}`" for name in model.id2label.values())
    several = " Any number of them may hold." if model.problem_type == "multi_label_classification" else ""
    return f"Labels: {names}.{several}"


def _figures(rows: list[dict[str, Any]], task: str) -> str:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        f"{task}, dev": lambda row: row["name"],
        rows[0]["metric"]: lambda row: f"{100 * row['accuracy_mean']:.2f}",
        "labels as torch's, %": lambda row: percent(row.get("agreement")),
        "MB": lambda row: f"{row['megabytes']:.1f}",
        "latency of one, ms": lambda row: f"{row['latency_ms_p50']:.2f}",
    }
    if all(row.get("agreement") is None for row in rows):  # a regression
        del columns["labels as torch's, %"]
    if "latency_ms_p50" not in rows[0]:
        del columns["latency of one, ms"]
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[show(row) for show in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _how_measured(config: ExportConfig, rows: list[dict[str, Any]], folder: Path) -> str:
    """Hardware, threads, versions and command of the figures, from what the run folder records."""
    run = read_run(folder, "", with_parts=False)
    hardware = run.versions.get("hardware", "a CPU that is not recorded")
    if torch.cuda.is_available():  # the models were on the CPU all the same
        hardware = f"the CPU of a machine with {hardware}, {torch.get_num_threads()} threads"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime"))
    latency = f"Latency is the median of {config.latency_repeats} texts of dev, one at a time. "
    latency = latency if "latency_ms_p50" in rows[0] else ""
    return f"{latency}Measured on {hardware}, with {packages}, by `{_without_places(run.command)}`."


def _without_places(command: str) -> str:
    """A command whose absolute paths are cut to their ends, which are not this machine's own."""
    return re.sub(r"(?<![\w.:/])(?:/[^/\s,'\"\]}]+)+", lambda path: _shown(path[0]), command)


def _in_transformers(model: PretrainedConfig, classes: Sequence[Named]) -> str:
    """How transformers loads it: by its Auto class, or by a class of the user's own."""
    known = {"distillery_words": "word_students", "nezha": "nezha"}.get(model.model_type)
    first = f"import distill.{known}  # of Distillery: it makes the kind known\n" if known else ""
    cls, names, segments = "AutoModelForSequenceClassification", "AutoModelForSequenceClassification, ", ""
    for each in classes:
        if load("classes", each).config_class.model_type == model.model_type:
            module, _, cls = name_of(each).rpartition(".")
            first, names = f"from {module} import {cls}  # the module where the class is defined\n", ""
            if getattr(model, "type_vocab_size", 0) <= 1:
                segments = ", return_token_type_ids=False"
    return f"""## With transformers

```python
{first}from transformers import {names}AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIR")
model = {cls}.from_pretrained("DIR").eval()
logits = model(**tokenizer(["a text"], return_tensors="pt"{segments})).logits
```"""


IN_ONNXRUNTIME = """## With onnxruntime

```python
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIR")
session = onnxruntime.InferenceSession("DIR/onnx/model.onnx")
encoded = tokenizer(["a text"], return_tensors="np", padding=True, return_token_type_ids=True)
names = {entry.name for entry in session.get_inputs()}
(logits,) = session.run(None, {name: encoded[name].astype("int64") for name in names})
```

`distillery predict --model DIR --runtime onnx` answers lines of text."""
