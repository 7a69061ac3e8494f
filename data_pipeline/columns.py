"""Columns of tsv, csv, jsonl and parquet files and of `datasets` data, row by row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from data_pipeline.readers import HUB, hub_parts, whole_characters
from data_pipeline.settings import TaskConfig
from data_pipeline.untrusted import LONGEST_ROW, bounded_lines, parse_json
from data_pipeline.urls import file_system, is_url, url_told

csv.field_size_limit(LONGEST_ROW)  # its own limit, 128 KB, is less than some texts have
ENCODING = "utf-8-sig"  # UTF-8, with or without a byte order mark


def rows_in(
    path: str, columns: list[str], header: bool, task: TaskConfig | None = None
) -> Iterator[list[str]]:
    """The columns of a file or data set, row by row. Raises ValueError naming what is wrong and where.

    `task`: the task whose labels are the last column; None where every column is text.
    """
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


def classes_in(path: str, column: str) -> list[str] | None:
    """The names of a data set's classes in its own order; None where a column of a file holds none."""
    classes = _class_label(_data_set(path).features[column]) if _is_data_set(path) else None
    return classes.names if classes else None
