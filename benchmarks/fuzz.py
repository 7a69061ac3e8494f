"""Benchmark `fuzz`: damaged and malicious files given to every reader.

    python -m benchmarks.fuzz [--cases 5000] [--seed 0] [--only READER] [--case N] [--json FILE]

Case N takes reader N modulo their number, changes a good file as a generator seeded with N says, and
reads it. It passes where the reader answers, or raises a ValueError or OSError that names the file: what
the command turns into one line and exit code 2. Any other exception fails, so do ten seconds and a gigabyte
too much.
`--case` repeats one with its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from jsonargparse import ArgumentError

from benchmarks.fuzz_changes import PACKED, changed
from benchmarks.fuzz_readers import READERS, Reader
from benchmarks.record import memory_mb, print_table, write_record

SECONDS = 10  # of CPU; longer is a hang
WAIT = 60  # seconds; so long a case may take that only waits, for the CPU too
MEMORY = 1 << 30  # bytes that a case may ask for


def main(arguments: list[str] | None = None) -> int:
    """Run the cases, print a table, write the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(READERS))
    parser.add_argument("--case", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    readers = {options.only: READERS[options.only]} if options.only else READERS
    numbers = range(options.cases) if options.case is None else [options.case]
    with tempfile.TemporaryDirectory() as name:
        make_all(Path(name), readers)
        with bounded_memory():
            found = []
            for number in numbers:
                found.append(outcome(Path(name), readers, options.seed, number))
                reader, what, told = found[-1]
                if what == "failed" or options.case is not None:
                    print(f"case {number} ({reader}): {what}: {told}", file=sys.stderr)
    counts = Counter((reader, what) for reader, what, _ in found)
    figures = {
        what: sum(counts[reader, what] for reader in readers) for what in ("read", "refused", "failed")
    }
    figures["cases"] = len(found)
    rows = [
        (reader, *(str(counts[reader, what]) for what in ("read", "refused", "failed")))
        for reader in readers
    ]
    rows.append(("all", *(str(figures[what]) for what in ("read", "refused", "failed"))))
    print_table(
        f"{len(found)} damaged or malicious files",
        ("reader", "read", "refused", "failed"),
        rows,
        f"Failed: an exception that is no clear refusal, {SECONDS} s of CPU, {WAIT} s,"
        f" or {MEMORY >> 20} MB.",
    )
    if options.json:
        typed = sys.argv[1:] if arguments is None else arguments
        write_record(options.json, "fuzz", typed, figures, {})
    return 1 if figures["failed"] else 0


def make_all(folder: Path, readers: dict[str, Reader]) -> None:
    """Write every reader's good files once, and read them: they are good."""
    for name, reader in readers.items():
        good = folder / name
        good.mkdir()
        reader.make(good)
        with contextlib.redirect_stderr(io.StringIO()):
            reader.read(good)


def outcome(folder: Path, readers: dict[str, Reader], seed: int, number: int) -> tuple[str, str, str]:
    """One case: the reader, `read`, `refused` or `failed`, and what was said."""
    rng = random.Random(f"{seed} {number}")
    name = list(readers)[number % len(readers)]
    reader, case = readers[name], folder / f"case-{number}"
    shutil.copytree(folder / name, case)
    try:
        files = sorted(path for path in case.rglob(reader.files) if path.is_file())
        chosen = rng.choice(files)
        unpack, pack = (
            PACKED[chosen.suffix] if chosen.suffix in PACKED and rng.random() < 0.7 else (bytes, bytes)
        )
        chosen.write_bytes(pack(changed(unpack(chosen.read_bytes()), rng)))
        if reader.seal and rng.random() < 0.5:
            reader.seal(case)
        with limited(), contextlib.redirect_stderr(io.StringIO()):
            reader.read(case)
    except (ValueError, OSError, ArgumentError) as error:
        told = str(error)
        clear = isinstance(error, ArgumentError) or (
            case.name in told and not isinstance(error, UnicodeError)
        )
        return name, "refused" if clear else "failed", f"{type(error).__name__}: {told}"[:300]
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return name, "failed", "".join(traceback.format_exception(error)[-8:])[-1500:]
    finally:
        shutil.rmtree(case)
    return name, "read", ""


class TooLong(BaseException):
    """A case that does not end."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """End a case that hangs."""

    def ring(number: int, frame: object) -> None:
        raise TooLong

    rings = {signal.ITIMER_PROF: (signal.SIGPROF, SECONDS), signal.ITIMER_REAL: (signal.SIGALRM, WAIT)}
    before = {number: signal.signal(number, ring) for number, _ in rings.values()}
    for timer, (_, seconds) in rings.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in rings:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process ask for no more than MEMORY beyond what it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_mb("VmSize") * 2**20) + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
