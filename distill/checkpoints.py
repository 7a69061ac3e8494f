"""Checkpoints of one stage: written beside and renamed, each file with a checksum, the oldest removed."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash

from data_pipeline.untrusted import parse_json
from data_pipeline.whole import write_whole
from distill.encoders import replace_folder
from distill.engine import Engine, barrier, rank, sum_over_ranks, world_size

RECORD = "checksums.json"  # written last: a folder without it is not whole
LOOK_EVERY = 0.05  # seconds between looks for the other ranks' marks
LAST_WAIT = 10.0  # seconds for them where this run ends by an error


class Checkpoints:
    """The checkpoints below a folder, `keep` of them. Every rank calls its methods together.

    A checkpoint is copied to host memory at once and written while training goes on: each rank writes its
    files and, last, a mark with their checksums; rank 0 waits for all marks and gives the folder its name.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep
        self._writing: _Writing | None = None
        # It begins to run here: one that is started when memory has run out may not, and starting it hang.
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._thread.submit(int).result()

    def save(self, engine: Engine, done: int, state: dict[str, Any], wait: bool = False) -> None:
        """Begin to write what the engine holds and `state`, as step `done`; older ones beyond `keep` go.

        Raises ValueError where the one before could not be written; with `wait`, where this one can't.
        """
        self.finish(engine.device)  # one at a time
        target = self._path(done)
        begun = target.with_suffix(".partial")
        if rank() == 0:
            shutil.rmtree(begun, ignore_errors=True)
            _told(begun, lambda: begun.mkdir(parents=True))
        barrier()
        files = engine.snapshot(begun, {"step": done, **state})
        whole = partial(self._complete, begun, target, done) if rank() == 0 else None
        self._writing = _Writing(self._thread, begun, files, whole)
        if wait:
            self.finish(engine.device)

    @property
    def failed(self) -> bool:
        """Whether this rank knows that what is being written will not be whole."""
        return self._writing is not None and self._writing.error is not None

    def finish(self, device: torch.device) -> None:
        """Wait for what is being written. Raises ValueError, on all ranks, where it can't be."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        for part in (writing.written, writing.ended):  # a rank's own part, then all of it
            failed = part.exception() is not None  # waits
            if sum_over_ranks(torch.tensor(float(failed), device=device)):
                writing.give_up.set()
                raise writing.error or ValueError(
                    f"{writing.folder}: another rank could not write its part"
                )

    def close(self) -> None:
        """Let what is being written come to its end, if it can without the other ranks' help."""
        if self._writing:
            futures.wait([self._writing.written])
            futures.wait([self._writing.ended], None if world_size() == 1 else LAST_WAIT)
            self._writing.give_up.set()
            self._writing = None
        self._thread.shutdown(wait=False)

    def _complete(self, begun: Path, target: Path, done: int) -> None:
        marks = [begun / _mark(number) for number in range(world_size())]
        record: dict[str, str] = {}
        for mark in marks:
            record |= json.loads(mark.read_text(encoding="utf-8"))
            mark.unlink()
        write_whole(begun / RECORD, json.dumps(record, indent=2) + "\n")
        replace_folder(begun, target)
        steps = self._steps()
        for old in {*steps[: -self.keep], *(step for step in steps if step > done)} - {done}:
            shutil.rmtree(self._path(old))  # later ones are damaged, or this would not be their past

    def load(self, engine: Engine) -> dict[str, Any] | None:
        """Read the newest whole checkpoint; returns its state, None where none was ever written.

        Damaged ones are named and passed over. Raises ValueError where all are damaged.
        """
        newest = self.newest() if rank() == 0 else 0
        found = torch.tensor(float(newest), dtype=torch.float64, device=engine.device)
        step = int(sum_over_ranks(found))
        if step < 0:
            raise ValueError(f"every checkpoint in {self.folder} is damaged; remove it to train anew")
        return engine.load(self._path(step)) if step else None

    def newest(self) -> int:
        """The step of the newest whole checkpoint, damaged ones named: 0 where there is none at all, -1
        where all are damaged.
        """
        steps = self._steps()
        return next((step for step in reversed(steps) if self._is_whole(step)), -1 if steps else 0)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _steps(self) -> list[int]:
        found = self.folder.glob("step-*") if self.folder.is_dir() else []
        names = (path.name.removeprefix("step-") for path in found)
        return sorted(int(name) for name in names if name.isdecimal())

    def _is_whole(self, step: int) -> bool:
        path = self._path(step)
        try:
            recorded = parse_json((path / RECORD).read_bytes())
            damage = [name for name, said in recorded.items() if checksum(path / name) != said]
        except FileNotFoundError as error:
            damage = [f"{Path(error.filename).name} is missing"]
        except (OSError, ValueError, AttributeError) as error:
            damage = [f"{RECORD}: {error}"]
        if damage:
            print(
                f"warning: the checkpoint {path} is damaged ({damage[0]}) and is skipped", file=sys.stderr
            )
        return not damage


class _Writing:
    """A checkpoint that a thread writes: this rank's files and mark, and on rank 0 what makes it whole."""

    def __init__(
        self,
        thread: ThreadPoolExecutor,
        folder: Path,
        files: dict[Path, bytes],
        complete: Callable[[], None] | None,
    ):
        self.folder, self.complete = folder, complete
        self.give_up = threading.Event()
        self.world = world_size()
        write = partial(write_files, folder, files, rank())
        self.written = thread.submit(_told, folder, write)
        self.ended = thread.submit(self._make_whole)

    @property
    def error(self) -> BaseException | None:
        """Why this rank can't do its part, as far as that is known."""
        found = [part.exception() for part in (self.written, self.ended) if part.done()]
        return next((error for error in found if error), None)

    def _make_whole(self) -> None:
        if self.complete and not self.error and self._all_marked():
            _told(self.folder, self.complete)

    def _all_marked(self) -> bool:
        """Wait until every rank has written its part."""
        while not all((self.folder / _mark(number)).is_file() for number in range(self.world)):
            if self.give_up.wait(LOOK_EVERY):
                return False
        return True


def _mark(number: int) -> str:
    return f"rank-{number:05d}.json"


def write_files(folder: Path, files: dict[Path, bytes], number: int) -> None:
    """Write a rank's files to the disk, and then its mark, which holds their checksums."""
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    sums = {
        path.relative_to(folder).as_posix(): xxhash.xxh3_128_hexdigest(content)
        for path, content in files.items()
    }
    write_whole(folder / _mark(number), json.dumps(sums))


def _told(folder: Path, write: Callable[[], None]) -> None:
    """Call `write`; where the disk is full or the like, say it as a ValueError."""
    try:
        write()
    except OSError as error:
        raise ValueError(
            f"the checkpoint {folder} can't be written ({error.strerror}); make room and continue with "
            "--resume, from the newest whole one"
        ) from None


def checksum(path: Path) -> str:
    """XXH3 of a file, read in pieces."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()
