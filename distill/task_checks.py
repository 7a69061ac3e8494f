"""What is refused of a task's files and of the models that teach it or are measured on it.

As in distill/checks.py: nothing but files is read, without torch, and every refusal is one line.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from data_pipeline.settings import METRICS, TaskConfig
from data_pipeline.tasks import checked_examples, label_set, read_examples
from data_pipeline.vocabulary import load_vocabulary, trained_length
from distill.custom import Named, check_name
from distill.model_facts import check_weights, model_config, of_words, outputs_of, own_labels, positions
from distill.settings import EvaluateConfig, StudentConfig, TeacherConfig


@cache
def warn_of_length(name: str, path: str, longest: int) -> None:
    """Say so, once, where texts may be longer than those that a model was trained with."""
    if (length := trained_length(path)) and length < longest:
        print(
            f"warning: {name}: {path} was trained with sequences of {length} tokens at most; here they "
            f"have up to {longest} (task.max_length)",
            file=sys.stderr,
        )


def check_members(teacher: TeacherConfig, task: TaskConfig) -> dict:
    """Refuse teachers without a head for the task or with unlike labels; returns the first one's config."""
    first = model_config(teacher.path, "teacher")
    for path, weight in teacher.members.items():
        model = model_config(path, "teacher")
        check_classifier(path, model, task)
        if teacher.precision == "int8" and of_words(model):
            raise ValueError(
                f"teacher.precision: int8 is for transformers, not for the model of words {path}; give auto"
            )
        check_reading(task, positions(model), path)
        load_vocabulary(path)
        check_weights("teacher", path)
        warn_of_length("teacher", path, task.max_length)
        if own_labels(model) != own_labels(first):
            raise ValueError(
                f"teacher.ensemble: {path} has the labels {own_labels(model)} and {teacher.path} has "
                f"{own_labels(first)}; members need the same in the same order"
            )
        if not 0 < weight < math.inf:
            raise ValueError(f"teacher.ensemble: the weight of {path} is {weight}; give more than 0")
    if teacher.path in teacher.ensemble:
        raise ValueError(f"teacher.ensemble: {teacher.path} is teacher.path too; name it once")
    return first


def check_latency_batches(batches: list[int]) -> None:
    """Refuse batch sizes that can't be timed."""
    if min(batches, default=0) < 1:
        raise ValueError(f"latency_batches: {batches}; give sizes of 1 or more")


def is_plain(name: str) -> bool:
    """Whether a name may be a part of a file's."""
    return Path(name).name == name and bool(name.strip("."))


def check_submit(config: EvaluateConfig) -> None:
    """Refuse files to answer that can't be used."""
    for name, path in config.submit.items():
        if not is_plain(name):
            raise ValueError(f"submit.{name}: give a plain name")
        read_examples(path, config.task, labelled=False)


def check_measured(name: str, path: str, task: TaskConfig, classes: Sequence[Named] = ()) -> None:
    """Refuse a model that can't be measured on a task's files."""
    model = model_config(path, name, classes)
    check_classifier(path, model, task, classes)
    check_reading(task, positions(model))
    load_vocabulary(path)
    check_weights(name, path)
    warn_of_length(name, path, task.max_length)
    labels = label_set(task, own_labels(model))
    for split, file in task.files.items():
        if split != "train":
            checked_examples(file, task, labels)


def check_classifier(path: str, model: dict, task: TaskConfig, classes: Sequence[Named] = ()) -> None:
    """Refuse a folder without a classification head for the task."""
    check_head(path, model, classes)
    problem = model.get("problem_type")  # null of many that were trained elsewhere
    if problem and (problem == "multi_label_classification") != (task.kind == "multi_label"):
        raise ValueError(
            f"{path} was trained for {problem} and task.kind is {task.kind}; give the kind that it is of"
        )
    check_pair(path, model, task.text_pair)
    check_outputs_of(path, model, label_set(task, own_labels(model)), classes)


def check_outputs_of(path: str, model: dict, labels: list[str], classes: Sequence[Named] = ()) -> None:
    """Refuse a classification head of another number of outputs than the labels need."""
    outputs, needed = outputs_of(model, classes), max(1, len(labels))
    if outputs not in (None, needed):
        raise ValueError(f"{path} has {outputs} outputs and the task needs {needed}; is it another task's?")


def check_path_head(student: StudentConfig, labels: list[str]) -> None:
    """Refuse a student's folder of another task."""
    if student.path:
        classes = [student.cls] if student.cls else []
        model = model_config(student.path, "student.path", classes)
        check_outputs_of(f"student.path: {student.path}", model, labels, classes)
        own = own_labels(model) or labels
        if own != labels and {*own} == {*labels}:  # its outputs keep their places
            print(
                f"warning: student.path: {student.path} was trained for {own}, and here its outputs, in "
                f"their order, become {labels}; it has to learn them anew",
                file=sys.stderr,
            )


def kept_labels(task: TaskConfig, model: dict) -> list[str] | None:
    """The labels that a model keeps when it is fine-tuned: its own, where the data has no others."""
    own = own_labels(model)
    if own is None or task.kind == "regression":
        return None
    wanted = {*label_set(task)}
    return own if wanted == {*own} or (wanted < {*own} and not task.labels) else None


def warn_of_outputs(path: str, model: dict, task: TaskConfig) -> None:
    """Say so where fine-tuning turns the outputs of a classifier into others."""
    labels, outputs, own = label_set(task, kept_labels(task, model)), outputs_of(model), own_labels(model)
    if outputs is None or labels == own or (own is None and outputs == max(1, len(labels))):
        return
    print(
        f"warning: model: {path} was trained for {own or f'{outputs} outputs'}; here it learns "
        f"{labels or 'one number'} instead",
        file=sys.stderr,
    )


def check_head(path: str, model: dict, classes: Sequence[Named] = ()) -> None:
    """Refuse a folder without a classification head; the user's own classes have one."""
    for each in classes:
        check_name("classes", each)
    if outputs_of(model, classes) is None:
        raise ValueError(f"{path} has no classification head; fine-tune it first (distillery finetune)")


def check_pair(path: str, model: dict, text_pair: str | None) -> None:
    """Refuse a model of whole words for pairs on single texts, and the other way round."""
    pairs = text_pair is not None
    if of_words(model) and model.get("pair", pairs) != pairs:
        reads, given = ("single texts", "pairs") if pairs else ("pairs", "single texts")
        raise ValueError(f"{path} reads {reads}, and {given} are given; set or leave out text_pair")


def check_task(task: TaskConfig, labels: list[str] | None, longest: int, batch_size: int) -> None:
    """Refuse data that can't be read, labels outside the set, or too long sequences."""
    check_reading(task, longest)
    known = label_set(task, labels)
    for name in task.more_dev:
        if name in ("train", "dev") or not name.isidentifier():
            raise ValueError(
                f"task.more_dev: {name} is no name for a file; give a word, such as mismatched"
            )
    if len({*known}) < len(known):
        raise ValueError(f"task.labels: {known}; give each once")
    if task.kind != "regression" and len(known) < 2:
        where = "task.labels" if task.labels else f"task: {task.train}"
        raise ValueError(f"{where} has one label only, {known}; nothing to learn")
    counts = {name: len(checked_examples(path, task, known).firsts) for name, path in task.files.items()}
    if (count := counts["train"]) < batch_size:
        raise ValueError(
            f"batch_size: {batch_size} is more than the {count} training examples; give a smaller one"
        )


def check_reading(task: TaskConfig, longest: int, whose: str = "the model") -> None:
    """Refuse a column that is two things, too long sequences, and a metric that is not the task's."""
    columns = [column for column in (task.text, task.text_pair, task.label) if column is not None]
    if twice := [column for column in columns if columns.count(column) > 1]:
        raise ValueError(
            f"task: the column {twice[0]} is named twice; give text, text_pair and label one each"
        )
    if task.max_length > longest or task.max_length < 4:
        raise ValueError(f"task.max_length: {task.max_length}; {whose} takes 4 to {longest}")
    if task.selection not in METRICS[task.kind]:
        raise ValueError(
            f"task.metric: {task.selection} does not go with {task.kind}; give "
            f"{', '.join(METRICS[task.kind])}"
        )
