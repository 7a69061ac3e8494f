"""Examples of dev that a model answers otherwise than the reference: RUN/disagreements.json."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.settings import TaskConfig
from data_pipeline.tasks import read_examples
from data_pipeline.whole import write_whole

MOST = 20  # examples of a model
LENGTH = 300  # characters of a text
FILE = "disagreements.json"


def answer_of(values: list[float], labels: list[str], task: TaskConfig) -> str:
    """What logits say: a label, the labels that hold, or a number."""
    if task.kind == "regression":
        return f"{values[0]:.3f}"
    if task.kind == "multi_label":
        return task.separator.join(sorted(chosen(values, labels)))  # models may order them otherwise
    return labels[max(range(len(values)), key=values.__getitem__)]


def chosen(values: list[float], labels: list[str]) -> list[str]:
    """Of several labels those that hold."""
    return [label for label, value in zip(labels, values, strict=True) if value > 0]


def write_disagreements(
    folder: Path, task: TaskConfig, models: dict[str, tuple[Tensor, list[str]]], reference: str
) -> None:
    """Write where models part from the reference, the surest first; of numbers the farthest apart.

    Args:
        folder: The run folder.
        task: The data; `dev` is what the models answered.
        models: By name, logits (examples, outputs) and the labels in their order.
        reference: The name of one of them.
    """
    examples = read_examples(task.dev, task)
    theirs = [answer_of(values, models[reference][1], task) for values in models[reference][0].tolist()]
    found = []
    for name, (logits, labels) in models.items():
        if name == reference:
            continue
        own = [answer_of(values, labels, task) for values in logits.tolist()]
        places = [place for place in range(len(own)) if own[place] != theirs[place]]
        far = _distance(logits, models[reference][0], task)
        surest = sorted(places, key=far.__getitem__, reverse=True)[:MOST]
        rows = [
            {
                "text": examples.firsts[place][:LENGTH],
                "second": examples.seconds[place][:LENGTH] if examples.seconds else None,
                "label": examples.labels[place],
                "reference": theirs[place],
                "answer": own[place],
            }
            for place in surest
        ]
        found.append({"name": name, "count": len(places), "of": len(own), "examples": rows})
    content = {"reference": reference, "kind": task.kind, "models": found}
    write_whole(folder / FILE, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _distance(logits: Tensor, reference: Tensor, task: TaskConfig) -> list[float]:
    """How sure a model is of each of its answers; of numbers how far they are from the reference's."""
    if task.kind == "regression":
        return (logits - reference).abs()[:, 0].tolist()
    if task.kind == "multi_label":
        return logits.sigmoid().sub(0.5).abs().mean(dim=-1).tolist()
    return torch.softmax(logits, dim=-1).amax(dim=-1).tolist()
