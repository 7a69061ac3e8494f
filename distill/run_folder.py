"""A run's folder: what was asked, what was measured, what came out. Readable without torch.

RUN/config.yaml     every setting, resolved       RUN/metrics.jsonl  curves
RUN/command.txt     what the user typed           RUN/checkpoints/   to resume from
RUN/versions.json   packages, commit, hardware    RUN/summary.json   written when a job ended
RUN/lock            held while a run writes here  RUN/legs.json      what it took, resumed or not
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.outage import Outage
from data_pipeline.whole import write_whole


@contextmanager
def held(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold a run folder, so that no other run writes it; the lock ends with its process.

    A POSIX lock, which NFS keeps too; `wait` seconds are for the lock of a node that has died, which a
    server keeps until its lease ends. Raises ValueError where another process holds the folder. On a file
    system without locks it warns, and holds nothing.
    """
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        until = time.monotonic() + wait
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    print(f"warning: {folder} can't be locked ({error.strerror})", file=sys.stderr)
                    break
                if time.monotonic() >= until:
                    file.seek(0)
                    raise Outage(
                        f"--run: {folder} is being written by another run ({file.read()}); "
                        "wait for its end, or give another folder"
                    ) from None
                time.sleep(1)
        file.truncate(0)
        file.write(f"process {os.getpid()} of {socket.gethostname()}")
        file.flush()
        yield


def writer(folder: Path) -> str:
    """Which process holds a run folder, in words; empty where none does, or where that is not known."""
    try:
        with (folder / "lock").open(encoding="utf-8") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return file.read()
    except OSError:
        pass
    return ""


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write RUN/summary.json, whole or not at all."""
    write_whole(folder / "summary.json", json.dumps(summary, indent=2) + "\n")


class Metrics:
    """Appends lines to RUN/metrics.jsonl; a resumed run drops what came after its checkpoint."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"
        self.started = time.monotonic()
        self.before = 0.0  # seconds that the run took before it was resumed

    def rewind(self, stage: str, step: int) -> None:
        """Forget lines of `stage` after `step`, and a half-written last line."""
        self.started = time.monotonic()
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["stage"] != stage or row["step"] <= step:
                kept.append(f"{line}\n")  # the last may lack its end
                self.before = row["time"]
        write_whole(self.path, "".join(kept))

    def append(self, row: dict[str, Any]) -> None:
        """Add one line, flushed."""
        seconds = self.before + time.monotonic() - self.started
        row = {**row, "time": round(seconds, 3)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
