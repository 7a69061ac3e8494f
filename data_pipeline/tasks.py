"""Labelled tasks: GLUE's and any other tsv, csv, jsonl, parquet or `datasets` data, by naming columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import xxhash

from data_pipeline.readers import HUB, hub_parts, whole_characters
from data_pipeline.settings import TaskConfig
from data_pipeline.untrusted import LONGEST_ROW, bounded_lines, parse_json
from data_pipeline.urls import file_system, is_url, url_told
from data_pipeline.vocabulary import Vocabulary

csv.field_size_limit(LONGEST_ROW)  # its own limit, 128 KB, is less than some texts have
ENCODING = "utf-8-sig"  # UTF-8, with or without a byte order mark

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
    rows = list(_rows(path, columns, task.header, task if labelled else None))
    if not rows:
        raise ValueError(f"task: {path} holds no examples")
    return Examples(
        [row[0] for row in rows],
        [row[1] for row in rows] if task.text_pair else [],
        [row[-1].strip() for row in rows] if labelled else [],
    )


def _rows(path: str, columns: list[str], header: bool, task: TaskConfig | None) -> Iterator[list[str]]:
    if _is_data_set(path):
        return _dataset_rows(path, columns, task)
    if not is_url(path):
        if not path:
            raise ValueError("task: the name of a file is empty; give an existing file")
        if (Path(path) / "dataset_dict.json").is_file():
            raise ValueError(f"task: {path} holds several splits; give the folder of one, as {path}/train")
        if Path(path).is_dir():
            raise ValueError(f"task: {path} is a folder; give a file")
        if not Path(path).is_file():
            raise ValueError(f"task: {path} does not exist; give an existing file")
    name = path.partition("?")[0] if is_url(path) else path  # a signed URL has a query
    if (form := Path(name).suffix[1:].lower()) in ("tsv", "csv", "jsonl"):
        return _file_rows(path, form, columns, header, task)
    kinds = ".tsv, .csv or .jsonl" if is_url(path) else ".tsv, .csv, .jsonl or .parquet"
    raise ValueError(f"task: {path} is of no known kind; give {kinds}")


def _is_data_set(path: str) -> bool:
    """Whether the library `datasets` reads it."""
    saved = (Path(path) / "state.json").is_file()
    return path.startswith(HUB) or saved or (_is_parquet(path) and Path(path).is_file())


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet")


def _file_rows(
    path: str, form: str, columns: list[str], header: bool, task: TaskConfig | None
) -> Iterator[list[str]]:
    with _open(path, line_ends(form)) as file:
        yield from rows_of(file, form, f"task: {path}", columns, header, task)


def _open(path: str, newline: str | None) -> TextIO:
    """A text file, of a URL whole in memory. Raises ValueError where that can't be read."""
    if not is_url(path):
        return open(path, encoding=ENCODING, newline=newline)
    files, inside = file_system(path)
    with url_told("task", path):
        content = files.cat_file(inside)
    return io.TextIOWrapper(io.BytesIO(content), encoding=ENCODING, newline=newline)


def line_ends(form: str) -> str:
    """The `newline` to open a file with: a carriage return within a line is text, except in csv."""
    return "" if form == "csv" else "\n"


def rows_of(
    file: TextIO, form: str, named: str, columns: list[str], header: bool, task: TaskConfig | None = None
) -> Iterator[list[str]]:
    """The columns of a tsv, csv or jsonl, row by row. Raises ValueError, which begins with `named`.

    `task`: the task whose labels are the last column; None where every column is text.
    """
    lines = bounded_lines(file, named)
    if form == "jsonl":
        return _json_rows(lines, named, columns, task)
    return _table_rows(lines, form, named, columns, header)


def _table_rows(
    lines: Iterable[str], form: str, named: str, columns: list[str], header: bool
) -> Iterator[list[str]]:
    rows = _tsv(lines) if form == "tsv" else _csv(lines, named)
    _, names = next(rows, (0, None)) if header else (0, [])
    if names is None:
        return
    places = [_place(column, names, named, header) for column in columns]
    width = len(names)
    for number, fields in rows:
        width = width or max(1, len(fields))
        if width > 1 and len(fields) < 2 and not "".join(fields).strip():  # a blank line
            continue
        fields = fields or [""]  # in a file of one column: an empty text
        if header and any(fields[width:]):
            mark = "tab" if form == "tsv" else "comma"
            raise ValueError(
                f"{named} line {number} has {len(fields)} columns and the header {width}; does a text hold "
                f"a {mark}?"
            )
        if len(fields) <= max(places):
            wanted = f"the header {width}" if header else f"column {max(places)} is needed, counted from 0"
            raise ValueError(
                f"{named} line {number} has {len(fields)} columns and {wanted}; is it cut off?"
            )
        yield [fields[place] for place in places]


def _tsv(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The fields of every line, as GLUE's files are: no quoting."""
    for number, line in enumerate(lines, 1):
        text = line.removesuffix("\n").removesuffix("\r")
        yield number, text.split("\t") if text else []


def _csv(lines: Iterable[str], named: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(lines, strict=True)  # else a quotation mark left open takes all that follows
    begin = 1
    try:
        for fields in reader:
            yield reader.line_num, fields
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{named} is no table: {error} in the row that begins at line {begin}; "
            "is a quotation mark left open?"
        ) from None


def _place(column: str, names: list[str], named: str, header: bool) -> int:
    if not header:
        if not column.isdecimal():
            raise ValueError(f'{named} has no header, so "{column}" must be a column number')
        return int(column)
    if column not in names:
        raise ValueError(
            f'{named} has no column "{column}"; it has {_listed(names)}: name one of these, or, if that is '
            "no header, give header false and columns by number"
        )
    if names.count(column) > 1:
        raise ValueError(f'{named} has several columns "{column}"; give each a name of its own')
    return names.index(column)


def _listed(names: Iterable[str]) -> str:
    """Names of columns, in quotes where blanks would not be seen."""
    return ", ".join(name if name and name == name.strip() else repr(name) for name in names)


def _json_rows(
    lines: Iterable[str], named: str, columns: list[str], task: TaskConfig | None
) -> Iterator[list[str]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            missing = [column for column in columns if _is_nothing(row.get(column))]
        except (ValueError, AttributeError):
            raise ValueError(f"{named} line {number} is no JSON object") from None
        if missing:
            if missing[0] in row:
                raise ValueError(f"{named} line {number} has nothing in the field '{missing[0]}'")
            raise ValueError(f"{named} line {number} has no field '{missing[0]}'; it has {_listed(row)}")
        yield _fields(row, columns, task, f"{named} line {number}")


def _is_nothing(value: object) -> bool:
    """Whether a field is empty: null, or the NaN that pandas writes for it, in a list of labels too."""
    if isinstance(value, list):
        return any(map(_is_nothing, value))
    return value is None or value != value


def _data_set(path: str) -> Any:
    from datasets import Dataset, load_dataset, load_from_disk
    from pyarrow.parquet import ParquetFile

    try:
        if path.startswith(HUB):
            name, configuration, split = hub_parts(path)
            return load_dataset(name, configuration, split=split)
        if _is_parquet(path):
            return Dataset(ParquetFile(path).read())  # its from_parquet leaves a copy in the user's cache
        return load_from_disk(path)
    except Exception as error:  # of many libraries and kinds: no such name, no network, a damaged file
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"task: {path} can't be read: {type(error).__name__}: {reason}") from None


def _dataset_rows(path: str, columns: list[str], task: TaskConfig | None) -> Iterator[list[str]]:
    """Rows of a data set of `datasets`; classes are called by their names."""
    rows = _data_set(path)
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise ValueError(
            f'task: {path} has no column "{missing[0]}"; it has {_listed(rows.column_names)}: name one of '
            "these"
        )
    classes = {column: _class_label(rows.features[column]) for column in columns}
    for number, row in enumerate(rows.select_columns(columns), 1):
        empty = [column for column in columns if _is_nothing(row[column])]
        if empty:
            raise ValueError(f"task: {path} row {number} has nothing in the column '{empty[0]}'")
        named = {column: _class_names(row[column], classes[column]) for column in columns}
        yield _fields(named, columns, task, f"task: {path} row {number}")


def _class_label(kind: Any) -> Any:
    """The ClassLabel of a column, or of the lists in it; None where it holds no classes."""
    from datasets import ClassLabel

    kind = getattr(kind, "feature", kind)
    return kind if isinstance(kind, ClassLabel) else None


def _class_names(value: Any, classes: Any) -> Any:
    """The name of a class, or the names of a list of them; empty for -1, which stands for no class."""
    if classes is None:
        return value
    if isinstance(value, list):
        return [_class_names(each, classes) for each in value]
    return classes.int2str(value) if value >= 0 else ""


def _fields(row: Any, columns: list[str], task: TaskConfig | None, named: str) -> list[str]:
    """A row's columns as text; only the last one may hold a list, of the task's labels."""
    tasks = [*[None] * (len(columns) - 1), task]
    try:
        return [_plain(row[name], name, its, named) for name, its in zip(columns, tasks, strict=True)]
    except UnicodeDecodeError:
        raise ValueError(f"{named} is not UTF-8 text; convert it, or give another file") from None


def _plain(value: object, column: str, task: TaskConfig | None, named: str) -> str:
    """A field as text; a list of labels as they would stand in a table. Raises ValueError, with the row."""
    if isinstance(value, dict) or (isinstance(value, list) and task is None):
        what = "a list" if isinstance(value, list) else "an object"
        raise ValueError(f'{named} holds {what} in "{column}" where a text is needed; give another column')
    if task and isinstance(value, list):
        if task.kind != "multi_label":
            raise ValueError(f"{named} holds a list; of several labels --task.kind is multi_label")
        labels = _labels_in(value, task, named)
        if inside := [label for label in labels if task.separator in label]:
            raise ValueError(
                f"{named}: the label {inside[0]!r} holds {task.separator!r} itself; give another separator"
            )
        return task.separator.join(labels)
    return whole_characters(_as_text(value))


def _as_text(value: object) -> str:
    """A value as it would stand in a table; texts of parquet files may be typed as bytes."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _labels_in(value: list, task: TaskConfig, named: str) -> list[str]:
    """The labels in a list: names, or a 0 or 1 for each of the task's. Raises ValueError, with the row."""
    bits = all(entry in (0, 1) for entry in value)
    if task.labels and bits and len(value) == len(task.labels):
        return [label for label, entry in zip(task.labels, value, strict=True) if entry]
    numbers = [entry for entry in value if isinstance(entry, int | float)]
    if len(set(numbers)) < len(numbers) or (bits and len(value) > 1 and not task.labels):
        raise ValueError(
            f"{named} holds a list of zeros and ones, or one that repeats a number; give --task.labels, "
            "a name for each of its entries in order, or lists of names"
        )
    if task.labels and bits and len(value) > 1 and not {"0", "1"}.intersection(task.labels):
        raise ValueError(
            f"{named} holds a list of {len(value)} zeros and ones and --task.labels has {len(task.labels)} "
            "names; give a name for each of its entries in order"
        )
    return list(map(_as_text, value))


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
    if classes := _is_data_set(task.train) and _class_label(_data_set(task.train).features[task.label]):
        return [name.strip() for name in classes.names]
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
