"""The model card of an exported model: README.md as the Hugging Face hub reads it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData
from transformers import PretrainedConfig

from data_pipeline.model_folder import model_folder
from distill.custom import Named, load, name_of
from distill.model_facts import positions, usual_length
from distill.recorded_run import read_run
from distill.settings import ExportConfig, PredictConfig
from distill.table import percent

TASK = "text-classification"


class Reads(NamedTuple):
    """What a model reads: columns of its text, or of both texts of a pair, and how many tokens.

    `usual`: how many `distillery predict` lets it read unless it is told.
    """

    text: str
    text_pair: str | None
    header: bool
    max_length: int
    usual: int


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
    reads = reads_of(config, model)
    said = [f"# {name}", _what(model, teacher, reads), _labels(model)]
    if rows:
        said += [_figures(rows, Path(_task_name(config)).name), _how_measured(config, rows, run)]
    said += [_in_transformers(model, config.classes, reads), _in_onnxruntime(reads), _in_distillery(reads)]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["onnx", "knowledge-distillation" if teacher else TASK],
        model_name=name,
        eval_results=_results(config, rows) if rows else None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(said) + "\n"


def teacher_of(model: str) -> str | None:
    """The teacher that a run's own student learned from; None where nothing says so."""
    return _recipe_part(model, "teacher").get("path") if Path(model).name == "student" else None


def _recipe_part(model: str, name: str) -> dict[str, Any]:
    """A part of the settings of the run that a model lies in; nothing where there are none."""
    recipe, settings = Path(model_folder(model)).resolve().parent / "config.yaml", None
    if recipe.is_file():
        with suppress(yaml.YAMLError, UnicodeDecodeError):  # another program's
            settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    part = settings.get(name) if isinstance(settings, dict) else None
    return part if isinstance(part, dict) else {}


def reads_of(config: ExportConfig, model: PretrainedConfig) -> Reads:
    """What a model reads, as the task it was measured on says, or else that of the run it lies in."""
    task = vars(config.task) if config.task else _recipe_part(config.model, "task")
    longest, usual = positions(model.to_dict()), usual_length(config.model, model.to_dict())
    pairs = getattr(model, "pair", None) is True  # students of whole words say it themselves
    return Reads(
        task.get("text", PredictConfig.text),
        task.get("text_pair") or ("sentence2" if pairs else None),
        task.get("header", True),
        min(task.get("max_length", usual), longest),
        usual,
    )


def _shown(path: str) -> str:
    """A path without what is this machine's own."""
    return "/".join(Path(path).parts[-2:]) if Path(path).is_absolute() else path


def _task_name(config: ExportConfig) -> str:
    assert config.task is not None
    dev = config.task.dev.partition(",")[0].removeprefix("hub:")
    return dev if config.task.dev.startswith("hub:") else Path(dev).resolve().parent.name


def _results(config: ExportConfig, rows: list[dict[str, Any]]) -> list[EvalResult]:
    """The first row's figures as the hub's metadata has them."""
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


def _what(model: PretrainedConfig, teacher: str | None, reads: Reads) -> str:
    kind = getattr(model, "kind", None)
    shape = model.model_type
    if kind:
        shape = f"a student of whole words, `{kind}`"
    elif hasattr(model, "num_hidden_layers"):
        shape = f"{model.model_type}, {model.num_hidden_layers} layers of width {model.hidden_size}"
    source = f" Distilled by Distillery from `{_shown(teacher)}`." if teacher else " Trained by Distillery."
    whose = "pairs of texts" if reads.text_pair else "texts"
    kinds = {"regression": "regression model", "multi_label_classification": "multi-label classifier"}
    return f"A {kinds.get(model.problem_type, 'classifier')} of {whose}: {shape}.{source}"


def _labels(model: PretrainedConfig) -> str:
    if model.problem_type == "regression":
        return "It answers with one number, its only logit."
    names = ", ".join(f"`{name}`" for name in model.id2label.values())
    several = " Any number of them may hold: those whose logits are above 0."
    return f"Labels: {names}.{several if model.problem_type == 'multi_label_classification' else ''}"


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


def _tokenised(reads: Reads) -> str:
    """The arguments of a tokenizer that cuts texts as the model was trained."""
    texts = '["a text"], ["a second text"]' if reads.text_pair else '["a text"]'
    return f"{texts}, truncation=True, max_length={reads.max_length}"


def _in_transformers(model: PretrainedConfig, classes: Sequence[Named], reads: Reads) -> str:
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
encoded = tokenizer({_tokenised(reads)}, return_tensors="pt"{segments})
logits = model(**encoded).logits
```"""


def _in_onnxruntime(reads: Reads) -> str:
    """How onnxruntime answers, with the tokenizer of transformers."""
    form = 'return_tensors="np", padding=True, return_token_type_ids=True'
    return f"""## With onnxruntime

```python
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIR")
session = onnxruntime.InferenceSession("DIR/onnx/model.onnx")
encoded = tokenizer({_tokenised(reads)}, {form})
names = {{entry.name for entry in session.get_inputs()}}
(logits,) = session.run(None, {{name: encoded[name].astype("int64") for name in names}})
```"""


def _in_distillery(reads: Reads) -> str:
    """The command that answers, with the settings whose defaults are others."""
    told = ["--model", "DIR", "--runtime", "onnx"]
    if reads.text_pair or reads.text != PredictConfig.text:
        told += ["--text", str(reads.text)]
    if reads.text_pair:
        told += ["--text_pair", str(reads.text_pair)]
    if not reads.header:
        told += ["--header", "false"]
    if reads.max_length != reads.usual:
        told += ["--max_length", str(reads.max_length)]
    lines = "lines of two texts with a tab between them" if reads.text_pair else "lines of text"
    return f"`distillery predict {shlex.join(told)}` answers {lines}, and tables."
