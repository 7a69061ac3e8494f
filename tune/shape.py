"""What an untrained student costs: parameters, FLOPs, and a timed forward, before anything is trained."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import xxhash

from data_pipeline.tasks import encode_split, label_set
from data_pipeline.vocabulary import load_vocabulary
from data_pipeline.whole import write_whole
from distill.measure import flops, latencies, size
from distill.model_facts import model_config, own_labels
from distill.settings import TaskDistillConfig
from distill.student import build_student

REPEATS = 50  # timed forwards


def shape_of(config: TaskDistillConfig, folder: Path) -> dict[str, Any]:
    """A student's costs, from `folder` where they have been measured, else measured and kept there.

    Returns parameters, megabytes (fp32), flops (of a dev example of median length) and latency_ms (the
    median of single dev examples).
    """
    task, student = asdict(config.task), asdict(config.student)
    of_words = _digest(student["words"], config.teacher.path, task)  # students of the same words share it
    del student["dropout"]  # which no cost depends on
    file = folder / f"{_digest(student, config.teacher.path, task)}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))["shape"]
    folder.mkdir(parents=True, exist_ok=True)
    found = _measure(config, folder / "vocabularies" / of_words)
    write_whole(file, json.dumps({"student": asdict(config.student), "shape": found}, indent=2) + "\n")
    return found


def _digest(*parts: Any) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(parts, sort_keys=True).encode())


def _measure(config: TaskDistillConfig, vocabulary: Path) -> dict[str, Any]:
    task, teacher = config.task, config.teacher.path
    labels = label_set(task, own_labels(model_config(teacher, "teacher")))
    model, tokenizer = build_student(config.student, teacher, task, labels, vocabulary)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    dev = encode_split(task.dev, task, load_vocabulary(tokenizer), labels)
    times = latencies({"student": model}, {"student": dev}, REPEATS)["student"]
    latency = round(statistics.median(times), 3)
    return {**size(model), "flops": flops(model, dev), "latency_ms": latency}
