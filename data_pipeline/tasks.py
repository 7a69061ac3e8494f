"""Labelled tasks: GLUE-format and plain tsv, csv and jsonl files, read by naming their columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data_pipeline.readers import whole_characters
from data_pipeline.vocabulary import Vocabulary

ENCODING = "utf-8-sig"  # UTF-8, with or without a byte order mark

Metric = Literal["accuracy", "f1", "matthews", "pearson_spearman"]


@dataclass
class TaskConfig:
    """A labelled data set.

    Args:
        train: Training file: .tsv (as GLUE: tabs, no quoting), .csv or .jsonl.
        dev: File that models are selected and compared on.
        text: Column of the sentence; its number (from 0) where files have no header.
        text_pair: Column of the second sentence of a pair task.
        label: Column of the label.
        kind: Classification or regression (one number).
        labels: The label set in the order of the model's outputs; by default the teacher's, or
            else the sorted labels of the training file.
        metric: What the best checkpoint is chosen by; by default accuracy, or the mean of
            Pearson and Spearman correlation for regression.
        max_length: Longest sequence in tokens; longer ones are cut.
        header: Whether files begin with a line of column names.
    """

    train: str
    dev: str
    text: str = "sentence"
    text_pair: str | None = None
    label: str = "label"
    kind: Literal["classification", "regression"] = "classification"
    labels: list[str] | None = None
    metric: Metric | None = None
    max_length: int = 128
    header: bool = True

    @property
    def selection(self) -> Metric:
        """The metric that decides which checkpoint is best."""
        return self.metric or ("accuracy" if self.kind == "classification" else "pearson_spearman")


@dataclass(frozen=True)
class Examples:
    """Raw texts and labels: `seconds` is empty for single sentences."""

    firsts: list[str]
    seconds: list[str]
    labels: list[str]


@dataclass(frozen=True)
class Encoded:
    """A tokenised split: ragged ids and segments, labels as class index or number."""

    ids: list[np.ndarray]
    segments: list[np.ndarray]
    labels: np.ndarray
    pad: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every example."""
        return np.array([len(ids) for ids in self.ids])

    def __len__(self) -> int:
        return len(self.ids)


def read_examples(path: str, task: TaskConfig) -> Examples:
    """Read one file. Raises ValueError naming file, line and column of what is wrong."""
    columns = [task.text, *([task.text_pair] if task.text_pair else []), task.label]
    try:
        rows = list(_rows(path, columns, task.header))
    except UnicodeDecodeError:
        raise ValueError(f"task: {path} is not UTF-8 text; convert it, or give another file") from None
    except csv.Error as error:
        raise ValueError(f"task: {path} is no table: {error}; is a quotation mark left open?") from None
    if not rows:
        raise ValueError(f"task: {path} holds no examples")
    return Examples(
        [row[0] for row in rows],
        [row[1] for row in rows] if task.text_pair else [],
        [row[-1] for row in rows],
    )


def _rows(path: str, columns: list[str], header: bool) -> Iterator[list[str]]:
    if Path(path).is_dir():
        raise ValueError(f"task: {path} is a folder; give a file")
    if not Path(path).is_file():
        raise ValueError(f"task: {path} does not exist; give an existing file")
    if path.endswith(".jsonl"):
        yield from _json_rows(path, columns)
        return
    if not path.endswith((".tsv", ".csv")):
        raise ValueError(f"task: {path} is of no known kind; give .tsv, .csv or .jsonl")
    with open(path, encoding=ENCODING, newline="") as file:
        if path.endswith(".tsv"):
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(file)
        names = next(reader, None) if header else []
        if names is None:
            return
        places = [_place(column, names, path, header) for column in columns]
        for fields in reader:
            if not fields:
                continue
            if len(fields) <= max(places):
                raise ValueError(
                    f"task: {path} line {reader.line_num} has {len(fields)} columns and "
                    f"column {max(places)} is needed; is it cut off?"
                )
            yield [fields[place] for place in places]


def _place(column: str, names: list[str], path: str, header: bool) -> int:
    if not header:
        if not column.isdecimal():
            raise ValueError(f'task: {path} has no header, so "{column}" must be a column number')
        return int(column)
    if column not in names:
        raise ValueError(f'task: {path} has no column "{column}"; it has {", ".join(names)}')
    return names.index(column)


def _json_rows(path: str, columns: list[str]) -> Iterator[list[str]]:
    with open(path, encoding=ENCODING) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                missing = [column for column in columns if row.get(column) is None]
            except (json.JSONDecodeError, AttributeError):
                raise ValueError(f"task: {path} line {number} is no JSON object") from None
            if missing:
                raise ValueError(f"task: {path} line {number} has no field '{missing[0]}'")
            yield [whole_characters(str(row[column])) for column in columns]


def label_set(task: TaskConfig, model_labels: list[str] | None = None) -> list[str]:
    """The labels in output order: the task's, else the model's, else the training file's sorted.

    Raises ValueError where the model's own labels disagree with the task's.
    """
    if task.kind == "regression":
        return []
    if task.labels and model_labels and task.labels != model_labels:
        raise ValueError(
            f"task.labels: {task.labels} is not the order that the model was trained with, "
            f"{model_labels}; use the model's"
        )
    labels = task.labels or model_labels
    return labels or sorted(set(read_examples(task.train, task).labels))


def check_labels(path: str, task: TaskConfig, labels: list[str]) -> None:
    """Refuse a file with a label outside the set, or with no number where one is needed."""
    for number, label in enumerate(read_examples(path, task).labels, 1):
        if task.kind == "regression":
            _number(label, path, number)
        elif label not in labels:
            raise ValueError(
                f'task: {path} example {number} has the label "{label}", which is none of '
                f"{', '.join(labels)}; correct the file or set --task.labels"
            )


def _number(label: str, path: str, number: int) -> float:
    try:
        value = float(label)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ValueError(f'task: {path} example {number} has "{label}" where a number is needed')
    return value


def encode_split(path: str, task: TaskConfig, vocabulary: Vocabulary, labels: list[str]) -> Encoded:
    """Tokenise a file, special tokens added as the tokenizer's own template says."""
    examples = read_examples(path, task)
    check_labels(path, task, labels)
    tokenizer = vocabulary.tokenizer
    tokenizer.enable_truncation(task.max_length)
    try:
        pairs = list(zip(examples.firsts, examples.seconds, strict=True)) if task.text_pair else None
        encodings = tokenizer.encode_batch(pairs or examples.firsts)
    finally:
        tokenizer.no_truncation()
    if task.kind == "regression":
        targets = np.array([float(label) for label in examples.labels], dtype=np.float32)
    else:
        index = {label: number for number, label in enumerate(labels)}
        targets = np.array([index[label] for label in examples.labels], dtype=np.int64)
    return Encoded(
        [np.array(encoding.ids, dtype=np.int32) for encoding in encodings],
        [np.array(encoding.type_ids, dtype=np.int32) for encoding in encodings],
        targets,
        vocabulary.pad,
    )


def bucketed_steps(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Examples of every global step of an epoch, (steps, batch_size), of like lengths in a step.

    Examples are permuted, sorted by length within groups of 50 batches, cut, and the batches
    permuted; those left over (fewer than a batch) differ from epoch to epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    steps = len(lengths) // batch_size
    order = rng.permutation(len(lengths))[: steps * batch_size]
    for start in range(0, len(order), 50 * batch_size):
        group = order[start : start + 50 * batch_size]
        order[start : start + len(group)] = group[np.argsort(lengths[group], kind="stable")]
    return order.reshape(steps, batch_size)[rng.permutation(steps)]
