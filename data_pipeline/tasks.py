"""Labelled tasks: GLUE's and any other tsv, csv, jsonl, parquet or `datasets` data, by naming columns."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from data_pipeline.columns import classes_in, rows_in
from data_pipeline.settings import TaskConfig
from data_pipeline.vocabulary import Vocabulary

TOGETHER = 4096  # texts that are tokenised at once: what the library keeps of each is large


@dataclass(frozen=True)
class Examples:
    """Raw texts and labels: `seconds` is empty for single sentences."""

    firsts: list[str]
    seconds: list[str]
    labels: list[str]


@dataclass(frozen=True)
class Encoded:
    """A tokenised split: ragged ids and segments.

    Labels are class indices (examples,), numbers (examples,), or zeros and ones (examples, labels);
    `teacher` holds the teacher's logits (examples, outputs) where they are known beforehand.
    """

    ids: list[np.ndarray]
    segments: list[np.ndarray]
    labels: np.ndarray
    pad: int
    teacher: np.ndarray | None = None

    def rows(self, begin: int, end: int) -> Encoded:
        """The examples from `begin` to `end`."""
        teacher = None if self.teacher is None else self.teacher[begin:end]
        return Encoded(
            self.ids[begin:end], self.segments[begin:end], self.labels[begin:end], self.pad, teacher
        )

    def padded(self, index: np.ndarray, width: int | None = None) -> dict[str, np.ndarray]:
        """Ids, mask, segments of the examples at `index`, int64 (n, width), by default the longest's."""
        width = width or max([1, *(len(self.ids[i]) for i in index)])
        ids = np.full((len(index), width), self.pad, dtype=np.int64)
        segments = np.zeros((len(index), width), dtype=np.int64)
        mask = np.zeros((len(index), width), dtype=np.int64)
        for row, i in enumerate(index):
            length = len(self.ids[i])
            ids[row, :length], segments[row, :length] = self.ids[i], self.segments[i]
            mask[row, :length] = 1
        return {"ids": ids, "mask": mask, "segments": segments}

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every example."""
        return np.array([len(ids) for ids in self.ids])

    @cached_property
    def identity(self) -> dict[str, str]:
        """Hashes that tell it from other data, by the name of each part."""
        parts = {"tokens": self.ids, "labels": [self.labels]}
        if self.teacher is not None:
            parts["teacher's logits"] = [self.teacher]
        return {"examples": str(len(self)), **{name: _digest(arrays) for name, arrays in parts.items()}}

    def __len__(self) -> int:
        return len(self.ids)


def _digest(arrays: list[np.ndarray]) -> str:
    digest = xxhash.xxh3_64()
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def read_examples(path: str, task: TaskConfig, labelled: bool = True) -> Examples:
    """Read one file. Raises ValueError naming file, line and column of what is wrong."""
    columns = [task.text, *([task.text_pair] if task.text_pair else []), *([task.label] * labelled)]
    if labelled and task.kind == "multi_label" and not task.separator:
        raise ValueError("task: the separator of labels is empty; give one that no label holds, such as ;")
    rows = list(rows_in(path, columns, task.header, task if labelled else None))
    if not rows:
        raise ValueError(f"task: {path} holds no examples")
    return Examples(
        [row[0] for row in rows],
        [row[1] for row in rows] if task.text_pair else [],
        [row[-1].strip() for row in rows] if labelled else [],
    )


def label_set(task: TaskConfig, model_labels: list[str] | None = None) -> list[str]:
    """The labels in output order: the task's, else the model's, else the training file's.

    Those of a data set are its classes in its own order; those of another file are sorted. A task's labels
    may be the numbers of a model's named classes.

    Raises ValueError where the model's own labels disagree with the task's.
    """
    if task.kind == "regression":
        return []
    if task.labels and model_labels and task.labels not in (model_labels, _numbers_of(model_labels)):
        raise ValueError(
            f"task.labels: {task.labels} is not the order that the model was trained with, "
            f"{model_labels}; use the model's"
        )
    labels = task.labels or model_labels
    if labels:
        return labels
    found = read_examples(task.train, task).labels
    if task.kind == "classification" and "" in found:
        raise ValueError(
            f"task: {task.train} example {found.index('') + 1} has no label; give it one, or leave it out"
        )
    if classes := classes_in(task.train, task.label):
        return [name.strip() for name in classes]
    return sorted({label for text in found for label in labels_of(text, task)})


def _numbers_of(names: list[str]) -> list[str]:
    """The numbers that stand for named classes, 0 first; none where a name is a number itself."""
    return [] if any(map(str.isdecimal, names)) else [str(number) for number in range(len(names))]


def labels_of(text: str, task: TaskConfig) -> list[str]:
    """The labels in one field of a classification."""
    if task.kind != "multi_label":
        return [text]
    return [label for part in text.split(task.separator) if (label := part.strip())]


def checked_examples(path: str, task: TaskConfig, labels: list[str]) -> Examples:
    """Read a file. Raises ValueError for a label outside the set, or for none where a number is needed."""
    known = set(labels)
    examples = read_examples(path, task)
    for number, text in enumerate(examples.labels, 1):
        if task.kind == "regression":
            _check_number(text, path, number)
            continue
        for label in labels_of(text, task):
            if label not in known:
                numbers = f" '[{', '.join(counted)}]'" if label in (counted := _numbers_of(labels)) else ""
                raise ValueError(
                    f'task: {path} example {number} has the label "{label}", which is none of '
                    f"{', '.join(labels)}; correct the file or set --task.labels{numbers}"
                )
    return examples


def _check_number(label: str, path: str, number: int) -> None:
    with suppress(ValueError):
        if abs(float(label)) <= np.finfo(np.float32).max:
            return
    raise ValueError(f'task: {path} example {number} has "{label}" where a number is needed')


def encode_split(path: str, task: TaskConfig, vocabulary: Vocabulary, labels: list[str]) -> Encoded:
    """Tokenise a file, special tokens added as the tokenizer's own template says."""
    examples = checked_examples(path, task, labels)
    return encode(examples, task, vocabulary, _targets(examples.labels, task, labels))


def encode_dev(task: TaskConfig, vocabulary: Vocabulary, labels: list[str]) -> dict[str, Encoded]:
    """Tokenise the files that are measured, by split: dev and those of `more_dev`."""
    return {
        name: encode_split(path, task, vocabulary, labels)
        for name, path in task.files.items()
        if name != "train"
    }


def read_targets(path: str, task: TaskConfig, labels: list[str]) -> np.ndarray:
    """The labels of a file as `Encoded` holds them."""
    return _targets(read_examples(path, task).labels, task, labels)


def encode_texts(path: str, task: TaskConfig, vocabulary: Vocabulary) -> Encoded:
    """Tokenise a file that needs no labels."""
    return encode(read_examples(path, task, labelled=False), task, vocabulary)


def encode(
    examples: Examples, task: TaskConfig, vocabulary: Vocabulary, targets: np.ndarray | None = None
) -> Encoded:
    """Tokenise examples, whose labels are all 0 where no targets are given."""
    if targets is None:
        targets = np.zeros(len(examples.firsts), dtype=np.int64)
    tokenizer = vocabulary.tokenizer
    pairs = list(zip(examples.firsts, examples.seconds, strict=True)) if task.text_pair else None
    texts = pairs or examples.firsts
    ids: list[np.ndarray] = []
    segments: list[np.ndarray] = []
    tokenizer.enable_truncation(task.max_length)
    try:
        for start in range(0, len(texts), TOGETHER):
            encodings = tokenizer.encode_batch_fast(texts[start : start + TOGETHER])
            ids += [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
            segments += [np.array(encoding.type_ids, dtype=np.int32) for encoding in encodings]
    finally:
        tokenizer.no_truncation()
    return Encoded(ids, segments, targets, vocabulary.pad)


def _targets(texts: list[str], task: TaskConfig, labels: list[str]) -> np.ndarray:
    if task.kind == "regression":
        return np.array([float(text) for text in texts], dtype=np.float32)
    index = {label: number for number, label in enumerate(labels)}
    if task.kind == "classification":
        return np.array([index[text] for text in texts], dtype=np.int64)
    targets = np.zeros((len(texts), len(labels)), dtype=np.float32)
    for row, text in enumerate(texts):
        targets[row, [index[label] for label in labels_of(text, task)]] = 1
    return targets


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
