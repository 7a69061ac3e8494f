"""Job `evaluate`: accuracy, size and speed of models on one task's dev file, as one table."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from data_pipeline.model_folder import model_folder
from data_pipeline.tasks import encode_split, label_set
from data_pipeline.vocabulary import load_vocabulary
from distill.checks import model_config, own_labels
from distill.engine import start_processes
from distill.measure import latencies, parameter_count, predict, task_metrics
from distill.run_folder import write_whole
from distill.settings import EvaluateConfig


def run(config: EvaluateConfig, folder: Path) -> dict:
    """Measure every row; returns them as `rows`."""
    device = start_processes()
    rows, timed, data = [], {}, {}
    for name, paths in config.models.items():
        scores = []
        for path in paths:
            labels = label_set(config.task, own_labels(model_config(path, name)))
            data[name] = encode_split(config.task.dev, config.task, load_vocabulary(path), labels)
            model = AutoModelForSequenceClassification.from_pretrained(model_folder(path)).to(device).eval()
            logits = predict(model, data[name], config.batch_size)
            scores.append(task_metrics(logits, data[name].labels, config.task.selection))
            if name not in timed:
                timed[name] = model
                if config.predictions:
                    _write_predictions(folder / f"predictions-{name}.jsonl", logits, labels)
        rows.append({"name": name, **_summarise(scores, config.task.selection)})
        rows[-1] |= size(timed[name])
    if config.latency:
        add_latency(rows, timed, data, config)
    return {"rows": rows}


def _summarise(scores: list[dict[str, float]], selection: str) -> dict:
    """Mean and standard deviation over seeds. `accuracy_*` holds the selecting metric."""
    values = [score[selection] for score in scores]
    return {
        "metric": selection,
        "accuracy_mean": statistics.mean(values),
        "accuracy_sd": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
        "scores": scores,
    }


def size(model: torch.nn.Module) -> dict:
    """Parameters, and megabytes in fp32."""
    count = parameter_count(model)
    return {"parameters": count, "megabytes": round(count * 4 / 1e6, 1)}


def add_latency(rows: list[dict], models: dict, data: dict, config: EvaluateConfig) -> None:
    """Add each row's latency at batch 1 and its speed-up over the reference row."""
    measured = latencies(models, data, config.latency_repeats)
    reference = config.reference or rows[0]["name"]
    for row in rows:
        row["latency_ms_p50"] = round(measured[row["name"]], 3)
        row["speedup"] = round(measured[reference] / measured[row["name"]], 2)


def _write_predictions(path: Path, logits: torch.Tensor, labels: list[str]) -> None:
    """One JSON line an example: its logits and, for classification, the label they give."""
    lines = []
    for values in logits.tolist():
        line = {"logits": values}
        if labels:
            line["label"] = labels[max(range(len(values)), key=values.__getitem__)]
        lines.append(json.dumps(line))
    write_whole(path, "\n".join(lines) + "\n")
