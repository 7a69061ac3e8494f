"""Text, JSON and messages of unknown origin: read within bounds, refused by ValueError alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

LONGEST_ROW = 8 << 20  # characters of a line, or of a table's field, which may be an example's whole text
LONGEST_MESSAGE = 2000


def parse_json(text: str | bytes) -> Any:
    """A JSON value. Raises ValueError where it is malformed or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def bounded_lines(file: TextIO, path: str) -> Iterator[str]:
    """The lines of a file. Raises ValueError at one longer than LONGEST_ROW, and where one is not UTF-8."""
    number = 0
    try:
        while line := file.readline(LONGEST_ROW):
            number += 1
            if len(line) == LONGEST_ROW:
                most = f"{LONGEST_ROW >> 20} million characters"
                raise ValueError(f"{path} line {number} has more than {most}; is it a text of lines?")
            yield line
    except UnicodeDecodeError as error:  # a chunk is decoded at once: its lines are not counted yet
        number += 1 + error.object[: error.start].count(b"\n")
        raise ValueError(
            f"{path} line {number} is not UTF-8 text; convert the file, or give another"
        ) from None


def one_line(message: str) -> str:
    """A message that quotes what was read: on one line, bounded, without control characters."""
    line = "".join(char if char.isprintable() else "?" for char in " ".join(message.split()))
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]} ..."


def one_field(text: str) -> str:
    """A text as one field of a tsv: a space where it holds tabs or ends of lines."""
    return " ".join(text.split())
