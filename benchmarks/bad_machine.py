"""A machine that fails, for benchmark `faults`: a disk that becomes read-only, a clock that jumps."""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from distill.compiler import compiler

DISK_SIZE = 64 << 20  # bytes
SHORTEST_JUMP, LONGEST_JUMP = 60, 30 * 86_400  # seconds


# ------------------------------------------------------------------------------------- the disk
@contextlib.contextmanager
def own_disk(place: Path) -> Iterator[None]:
    """A new folder `place` is an ext4 file system of its own, in a file beside it.

    Raises OSError or CalledProcessError where none can be made: root may, outside most containers.
    """
    image = image_of(place)
    with image.open("wb") as file:
        file.truncate(DISK_SIZE)
    call("mkfs.ext4", "-q", "-F", image)
    place.mkdir()
    mount(place)
    try:
        (place / "lost+found").rmdir()
        yield
    finally:
        call("umount", "--lazy", place)


def make_read_only(process: subprocess.Popen[bytes], run: Path, rng: random.Random) -> bool:
    """The disk fails: as after a real error ext4 writes no more, neither open files nor its journal."""
    call("mount", "-o", "remount,abort", run)
    return True


def mend(place: Path) -> None:
    """Check the disk and mount it anew, as at a reboot: what was not yet on it is gone."""
    call("umount", place)
    call("e2fsck", "-p", image_of(place), fine=(0, 1))  # 1: mended
    mount(place)


def image_of(place: Path) -> Path:
    """The file that holds a folder's file system."""
    return place.with_name(f"{place.name}.ext4")


def mount(place: Path) -> None:
    """Mount a folder's file system."""
    call("mount", "-o", "loop", image_of(place), place)


def call(*words: str | Path, fine: tuple[int, ...] = (0,)) -> None:
    """Run a tool of the system. Raises CalledProcessError with what it said."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run(
        words, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode not in fine:
        raise subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr)


# ------------------------------------------------------------------------------------ the clock
def jumping_clock(run: Path) -> list[str]:
    """What goes before a command so that `jump` sets its processes' clock; monotonic clocks stay.

    Raises OSError or CalledProcessError where the library for that can't be compiled.
    """
    library = clock_of(run).with_suffix(".so")
    words = compiler()
    if words is None:
        raise FileNotFoundError("no C++ compiler, by $CXX or as c++")
    call(*words, "-shared", "-fPIC", "-O2", "-o", library, Path(__file__).with_name("jumping_clock.cpp"))
    clock_of(run).write_bytes(bytes(8))
    return ["env", f"LD_PRELOAD={library}", f"JUMPING_CLOCK={clock_of(run)}"]


def jump(process: subprocess.Popen[bytes], run: Path, rng: random.Random) -> bool:
    """The clock jumps, forwards or backwards, by a minute to a month."""
    seconds = rng.choice((-1, 1)) * SHORTEST_JUMP * (LONGEST_JUMP / SHORTEST_JUMP) ** rng.random()
    with clock_of(run).open("r+b") as file:  # which the processes have mapped
        file.write(struct.pack("=q", round(seconds)))
    return True


def jumped(run: Path) -> bool:
    """Whether a run saw its clock jump: its dates are further apart than what it took, or it has no end."""
    if not (run / "summary.json").is_file():
        return True
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    (first, *_) = json.loads((run / "legs.json").read_text(encoding="utf-8"))
    begun, ended = (datetime.fromisoformat(text) for text in (first["started"], summary["finished"]))
    return abs((ended - begun).total_seconds() - summary["wall_s"]) > SHORTEST_JUMP / 2


def clock_of(run: Path) -> Path:
    """The file that says by how many seconds a run's clock is fast."""
    return run.with_name(f"{run.name}.clock")
