"""What the benchmark `fuzz` does to a good file: seeded changes of its bytes, its numbers and its JSON."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import random
import re
import struct
from typing import Any

from data_pipeline.readers import zstd

# Nine lines of YAML that stand for nine to the eighth values.
BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n".encode() for old, new in itertools.pairwise("abcdefgh")
)
NUMBERS = [b"-Infinity", b"1e999", b"-1", b"0", b"9" * 25, b"9" * 5000]
# What texts and JSON may hold and readers may stumble over.
NASTY = [
    b"\0", b"\r", b"\n", b"\n\n", b"\t", b'"', b"'", b",", b"\xff", b"\xef\xbb\xbf",
    b"\xe2\x80\xa8", b"\x1a", b"\\ud800", b"\xed\xa0\x80", b"{", b"}", b"[", b"null", b"NaN",
    *NUMBERS, b"[" * 3000, b'{"a":' * 3000, b"&a *a ", b"!!python/object:os.system ",
    b"<!--", BOMB, b"<" * 2000, b"{{" * 2000, b"a" * 200_000, b"a " * 70_000, b"../../../etc/passwd",
    b"%s%n", b"\x1b[2J",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**63, -(2**40), 1e300, float("nan"), float("inf"), "", "a", "../x", "\0",
    [], {}, [[]], {"a": None}, "x" * 10_000, ["a"] * 100,
]  # fmt: skip


# What is within compressed files is changed as well as they themselves.
PACKED = {
    ".gz": (gzip.decompress, gzip.compress),
    ".bz2": (bz2.decompress, bz2.compress),
    ".xz": (lzma.decompress, lzma.compress),
    ".zst": (zstd.decompress, zstd.compress),
}


def changed(data: bytes, rng: random.Random) -> bytes:
    """A file with one to three changes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(CHANGES)(data, rng)
    return data


def _place(data: bytes, rng: random.Random) -> tuple[int, int]:
    """A short run somewhere, more often near the beginning, where headers are."""
    begin = rng.randrange(min(len(data), 128) + 1) if rng.random() < 0.4 else rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.choice((1, 2, 4, 8, 64, 512)))


def flip(data: bytes, rng: random.Random) -> bytes:
    """Some bytes others."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        if content:
            content[_place(data, rng)[0] % len(content)] = rng.choice(
                (0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256))
            )
    return bytes(content)


def cut(data: bytes, rng: random.Random) -> bytes:
    """It ends early."""
    return data[: _place(data, rng)[0]]


def drop(data: bytes, rng: random.Random) -> bytes:
    """A run is missing."""
    begin, end = _place(data, rng)
    return data[:begin] + data[end:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """A run is there many times."""
    begin, end = _place(data, rng)
    return data[:end] + data[begin:end] * rng.choice((1, 2, 1000)) + data[end:]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Something nasty in between."""
    begin, _ = _place(data, rng)
    return data[:begin] + rng.choice(NASTY) + data[begin:]


def renumber(data: bytes, rng: random.Random) -> bytes:
    """A number in a text, or four bytes of one, is another."""
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?", data))
    if found and rng.random() < 0.7:
        one = rng.choice(found)
        return data[: one.start()] + rng.choice(NUMBERS) + data[one.end() :]
    begin, _ = _place(data, rng)
    number = struct.pack("<i", rng.choice((0, -1, 1, 2**31 - 1, -(2**31), 2**16, 10**6)))
    return data[:begin] + number + data[begin + 4 :]


def restructure(data: bytes, rng: random.Random) -> bytes:
    """A value somewhere in JSON, or in a line of it, is another; other files get something nasty."""
    lines = data.splitlines(keepends=True) or [b""]
    number = rng.randrange(len(lines))
    try:
        return json.dumps(_revalued(json.loads(data), rng)).encode()
    except (ValueError, RecursionError):
        pass
    try:
        lines[number] = json.dumps(_revalued(json.loads(lines[number]), rng)).encode() + b"\n"
    except (ValueError, RecursionError):
        return insert(data, rng)
    return b"".join(lines)


def _revalued(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(VALUES)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    if rng.random() < 0.1:
        del value[key]
    else:
        value[key] = _revalued(value[key], rng)
    return value


def replace(data: bytes, rng: random.Random) -> bytes:
    """Something else altogether."""
    return rng.choice(
        (
            data + BOMB,
            b"",
            b"\n",
            rng.randbytes(200),
            b"\0" * 1000,
            b"PK\x03\x04",
            gzip.compress(data),
            *NASTY,
        )
    )


CHANGES = [flip, cut, drop, repeat, insert, insert, renumber, renumber, restructure, restructure, replace]
