"""What a model is worth on a task: predictions, metrics, size and latency."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
)
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from data_pipeline.settings import Metric, TaskConfig
from data_pipeline.tasks import Encoded
from distill.accounting import count_flops, synchronise
from distill.encoders import model_inputs
from distill.engine import rank, sum_over_ranks, world_size
from distill.read_places import reading
from distill.sources import task_batch


@torch.no_grad()
def predict(model: PreTrainedModel, data: Encoded, batch_size: int = 64) -> Tensor:
    """Logits of every example, (examples, classes), on the CPU; shared out over the ranks.

    Every rank runs as many batches as the others (ZeRO 3 gathers weights in step): the examples
    are sorted by length and the last rows repeated where they don't come out even.
    """
    order = np.argsort(data.lengths, kind="stable")
    steps = -(-len(order) // (batch_size * world_size()))
    padded = np.pad(order, (0, steps * batch_size * world_size() - len(order)), mode="edge")
    mine = padded.reshape(steps, world_size(), batch_size)[:, rank()]
    results = sum_over_ranks(_counted_logits(model, data, mine))
    return (results[:, :-1] / results[:, -1:]).cpu()


@torch.no_grad()
def own_predictions(model: PreTrainedModel, data: Encoded, batch_size: int) -> Tensor:
    """Logits of every example, (examples, classes), on the CPU; computed by this rank alone."""
    order = np.argsort(data.lengths, kind="stable")
    steps = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    return _counted_logits(model, data, steps)[:, :-1].cpu()


def _counted_logits(model: PreTrainedModel, data: Encoded, steps: Iterable[np.ndarray]) -> Tensor:
    """Logits of the examples in `steps`, then how often each was seen: (examples, classes + 1)."""
    results = torch.zeros(len(data), model.config.num_labels + 1, device=model.device)
    for step in steps:
        batch = task_batch(data, step).to(model.device)
        with reading(model, None):
            logits = model(**model_inputs(model, batch)).logits
        index = torch.from_numpy(step).to(model.device)
        results[index] = functional.pad(logits.float(), (0, 1), value=1.0)
    return results


def measure_dev(model: PreTrainedModel, dev: dict[str, Encoded], task: TaskConfig) -> dict[str, float]:
    """A model's metrics on dev and on the files measured beside it."""
    logits = {name: predict(model, data) for name, data in dev.items()}
    return dev_scores(logits, {name: data.labels for name, data in dev.items()}, task)


def dev_scores(
    logits: dict[str, Tensor], labels: dict[str, np.ndarray], task: TaskConfig
) -> dict[str, float]:
    """Metrics by name; those of a file other than dev carry its name, as in accuracy_mismatched."""
    scores: dict[str, float] = {}
    for name, values in logits.items():
        found = task_metrics(values, labels[name], task.selection)
        scores |= found if name == "dev" else {f"{key}_{name}": value for key, value in found.items()}
    return scores


def task_metrics(logits: Tensor, labels: np.ndarray, selection: Metric) -> dict[str, float]:
    """Metrics of a task, the one that selects among them.

    Classification: accuracy, with f1 (of class 1), f1_micro, f1_macro or matthews where that selects.
    Several labels each: accuracy (every label right), f1_micro, f1_macro. Regression: pearson, spearman
    and their mean, pearson_spearman.
    """
    if labels.ndim == 2:
        chosen = (logits > 0).numpy()
        scores = {"accuracy": float(accuracy_score(labels, chosen))}
        for average in ("micro", "macro"):
            scores[f"f1_{average}"] = float(f1_score(labels, chosen, average=average, zero_division=0))
        return scores
    if logits.shape[-1] == 1:
        values = logits[:, 0].numpy()
        pearson = _correlation(pearsonr, values, labels)
        spearman = _correlation(spearmanr, values, labels)
        mean = (pearson + spearman) / 2
        return {"pearson": pearson, "spearman": spearman, "pearson_spearman": mean}
    predicted = logits.argmax(dim=-1).numpy()
    scores = {"accuracy": float(accuracy_score(labels, predicted))}
    if selection == "f1":
        average = "binary" if logits.shape[-1] == 2 else "macro"
        scores["f1"] = float(f1_score(labels, predicted, average=average, zero_division=0))
    if selection in ("f1_micro", "f1_macro"):
        average = selection.removeprefix("f1_")
        scores[selection] = float(f1_score(labels, predicted, average=average, zero_division=0))
    if selection == "matthews":
        scores["matthews"] = float(matthews_corrcoef(labels, predicted))
    return scores


def agreement(logits: Tensor, others: Tensor, several: bool = False) -> float | None:
    """Share of the examples to which two models give the same label; of `several` labels, all of them.

    None of a regression, whose one number is no label.
    """
    if logits.shape[-1] == 1 and not several:
        return None
    if several:
        same = ((logits > 0) == (others > 0)).all(dim=-1)
    else:
        same = logits.argmax(dim=-1) == others.argmax(dim=-1)
    return float(same.float().mean())


def _correlation(kind: Callable[..., Any], values: np.ndarray, labels: np.ndarray) -> float:
    if 0 in (np.ptp(values), np.ptp(labels)):  # a constant correlates with nothing
        return 0.0
    found = float(kind(values, labels).statistic)
    return found if math.isfinite(found) else 0.0


def size(model: torch.nn.Module) -> dict[str, Any]:
    """Parameters of a model, shared ones counted once, and megabytes in fp32."""
    count = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": count, "megabytes": round(count * 4 / 1e6, 1)}


def by_class(logits: Tensor, targets: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """`classes`, precision, recall, F1 and support of each; their `averages`; the `confusion` matrix.

    Of labels that don't exclude one another there is no such matrix. Rows of it are the true classes.
    """
    several = targets.ndim == 2
    predicted = (logits > 0).numpy() if several else logits.argmax(dim=-1).numpy()
    numbers = list(range(len(labels)))
    report = classification_report(targets, predicted, labels=numbers, output_dict=True, zero_division=0)
    classes = {label: report.pop(str(number)) for number, label in enumerate(labels)}
    found: dict[str, Any] = {"classes": classes, "averages": report}
    if not several:
        found["confusion"] = confusion_matrix(targets, predicted, labels=numbers).tolist()
    return found


@torch.no_grad()
def flops(model: PreTrainedModel, data: Encoded) -> int:
    """Floating-point operations of a forward pass over an example of median length."""
    middle = np.argsort(data.lengths, kind="stable")[len(data) // 2]
    batch = task_batch(data, np.array([middle])).to(model.device)
    return count_flops(lambda: model(**model_inputs(model, batch)))


@torch.no_grad()
def latencies(
    models: dict[str, PreTrainedModel], data: dict[str, Encoded], repeats: int, batch_size: int = 1
) -> dict[str, list[float]]:
    """Milliseconds of every timed forward of `batch_size` examples, the models taking turns.

    Every model sees the same `repeats` batches of neighbours in length (as the first model counts it),
    evenly spread over the data and tokenised its own way; turns keep a machine's drift from favouring one.
    A first forward of each is not timed: whoever follows a large model finds the caches full of that one's.
    """
    order = np.argsort(next(iter(data.values())).lengths, kind="stable")
    size = min(batch_size, *map(len, data.values()))
    last = min(map(len, data.values())) - size
    chosen = np.linspace(0, last, repeats).astype(int)
    times: dict[str, list[float]] = {name: [] for name in models}
    for begin in [*chosen[:5], *chosen]:
        for name, model in models.items():
            batch = task_batch(data[name], order[begin : begin + size])
            inputs = model_inputs(model, batch.to(model.device))
            model(**inputs)
            synchronise(model.device)
            start = time.perf_counter()
            model(**inputs)
            synchronise(model.device)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: each[-repeats:] for name, each in times.items()}  # not those that warm up
