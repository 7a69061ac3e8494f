"""Files that are whole or not there: written beside their name, then renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import xxhash

CHECKSUMS = "checksums.json"  # written last into some folders: without it they are not whole


def beside(path: Path) -> Path:
    """A name to write `path` under before it is renamed; no process on any node has the same."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file to write; it has its name once it has been written to the disk."""
    partial = beside(path)
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave an empty file under the name
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill under another name; filled without an error, it takes the place of `folder`."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    replace_folder(partial, folder)


def to_disk(path: Path) -> None:
    """Wait until what was written to a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def replace_folder(partial: Path, target: Path) -> None:
    """Put a finished folder in the place of an older one, its files on the disk before their new name."""
    for path in partial.rglob("*"):
        if path.is_file():
            to_disk(path)
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(partial, target)
    shutil.rmtree(old, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text; the file is the old one or the new one, never half."""
    with whole_file(path) as file:
        file.write(text)


def checksum(path: Path) -> str:
    """XXH3 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
