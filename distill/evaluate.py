"""Job `evaluate`: quality, size and speed of models on one task's dev file, as one table.

RUN/predictions-NAME.jsonl   logits, and labels, of every example     RUN/confusion-NAME.svg
RUN/disagreements.json       examples that models answer otherwise than the reference
RUN/submission-NAME/FILE.tsv answers to files without labels, as GLUE's server takes them
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from data_pipeline.progress import tracked
from data_pipeline.settings import TaskConfig
from data_pipeline.tasks import Encoded, encode_dev, encode_texts, label_set
from data_pipeline.untrusted import one_field
from data_pipeline.vocabulary import load_vocabulary
from data_pipeline.whole import write_whole
from distill.charts import confusion_chart, standalone
from distill.disagreements import answer_of, chosen, write_disagreements
from distill.encoders import load_classifier
from distill.engine import start_processes
from distill.measure import by_class, dev_scores, flops, latencies, predict, size
from distill.model_facts import model_config, own_labels
from distill.settings import EvaluateConfig

NUMBERED = ("CoLA", "SST-2", "MRPC", "QQP", "WNLI")  # whose classes are numbers to GLUE's server


def run(config: EvaluateConfig, folder: Path) -> dict:
    """Measure every row; returns them as `rows`."""
    device = start_processes()
    timed, data, answers, first = {}, {}, {}, {}
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in config.models}
    folders = [(name, path) for name, paths in config.models.items() for path in paths]
    for name, path in tracked(folders, "evaluate", "model"):
        labels = label_set(config.task, own_labels(model_config(path, name, config.classes)))
        dev = encode_dev(config.task, load_vocabulary(path), labels)
        model = load_classifier(path, config.classes).to(device)
        logits = {split: predict(model, part, config.batch_size) for split, part in dev.items()}
        targets = {split: part.labels for split, part in dev.items()}
        scores[name].append(dev_scores(logits, targets, config.task))
        if name not in timed:
            timed[name], data[name] = model, dev["dev"]
            answers[name] = logits["dev"], labels
            first[name] = _of_first(config, folder, name, path, model, logits["dev"], dev["dev"], labels)
    rows = [
        {"name": name, **summarise(scores[name], config.task.selection), **first[name]}
        for name in config.models
    ]
    reference = config.reference or rows[0]["name"]
    if len(answers) > 1:
        write_disagreements(folder, config.task, answers, reference)
    if config.latency:
        add_latency(rows, timed, data, reference, config.latency_batches, config.latency_repeats)
    return {"rows": rows}


def _of_first(
    config: EvaluateConfig,
    folder: Path,
    name: str,
    path: str,
    model: PreTrainedModel,
    logits: torch.Tensor,
    dev: Encoded,
    labels: list[str],
) -> dict:
    """What a row says of its first model alone; writes that one's predictions, picture and answers."""
    found = {**size(model), "flops": flops(model, dev)}
    if labels:
        found |= by_class(logits, dev.labels, labels)
    counts = found.get("confusion")
    if counts and (chart := confusion_chart(f"{name}: confusion", labels, counts)):
        write_whole(folder / f"confusion-{name}.svg", standalone(chart))
    if config.predictions:
        _write_predictions(folder / f"predictions-{name}.jsonl", logits, labels, config.task)
    for file, texts in config.submit.items():
        answers = predict(model, encode_texts(texts, config.task, load_vocabulary(path)), config.batch_size)
        _write_submission(folder / f"submission-{name}" / f"{file}.tsv", answers, labels, config.task)
    return found


def summarise(scores: list[dict[str, float]], selection: str) -> dict:
    """Mean and standard deviation over seeds. `accuracy_*` holds the selecting metric."""
    values = [score[selection] for score in scores]
    return {
        "metric": selection,
        "accuracy_mean": statistics.mean(values),
        "accuracy_sd": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
        "scores": scores,
    }


def add_latency(
    rows: list[dict], models: dict, data: dict, reference: str, batches: list[int], repeats: int
) -> None:
    """Add each row's latencies and throughputs, and its speed-up over the row `reference`."""
    for batch in batches:
        measured = latencies(models, data, repeats, batch)
        size = min(batch, *map(len, data.values()))  # as many as there are
        of_batch = "" if batch == 1 else f"_{batch}"
        middle = {name: statistics.median(times) for name, times in measured.items()}
        for row in rows:
            times, p50 = measured[row["name"]], middle[row["name"]]
            row[f"latency_ms_p50{of_batch}"] = round(p50, 3)
            row[f"latency_ms_p95{of_batch}"] = round(float(np.percentile(times, 95)), 3)
            row[f"sequences_per_s{of_batch}"] = round(1000 * size / statistics.mean(times), 1)
            row[f"speedup{of_batch}"] = round(middle[reference] / p50, 2)


def _write_predictions(path: Path, logits: torch.Tensor, labels: list[str], task: TaskConfig) -> None:
    """One JSON line an example: its logits and, but for regression, the label or labels they give."""
    lines = []
    for values in logits.tolist():
        line: dict[str, Any] = {"logits": values}
        if task.kind == "multi_label":
            line["labels"] = chosen(values, labels)
        elif labels:
            line["label"] = answer_of(values, labels, task)
        lines.append(json.dumps(line, ensure_ascii=False))
    write_whole(path, "\n".join(lines) + "\n")


def _write_submission(path: Path, logits: torch.Tensor, labels: list[str], task: TaskConfig) -> None:
    """A line for each text: its number and its label, or a class's number where GLUE wants that."""
    path.parent.mkdir(exist_ok=True)
    if path.stem in NUMBERED and not all(map(str.isdecimal, labels)):
        labels = list(map(str, range(len(labels))))
    answers = [one_field(answer_of(values, labels, task)) for values in logits.tolist()]
    lines = [f"{number}\t{answer}" for number, answer in enumerate(answers)]
    write_whole(path, "\n".join(["index\tprediction", *lines]) + "\n")
