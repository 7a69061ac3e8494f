"""Checkpoints of one stage: written beside and renamed, with a checksum, the oldest removed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import xxhash
from torch import Tensor

from data_pipeline.outage import Outage
from data_pipeline.untrusted import parse_json
from data_pipeline.whole import CHECKSUMS, checksum, replace_folder, to_disk, write_whole
from distill.engine import Engine, rank, sum_over_ranks
from distill.mirror import mirroring

STATE = "state.safetensors"
NONE, DAMAGED = -1, -2  # instead of a step
ENGINE = "engine"  # where a state holds the optimizer's numbers


class Checkpoints:
    """The checkpoints below a folder, `keep` of them. Every rank calls its methods together.

    A checkpoint is copied to host memory at once and written by rank 0 while training goes on; the lines of
    `metrics` up to it are on the disk before.
    """

    def __init__(self, folder: Path, keep: int, metrics: Path):
        self.folder = folder
        self.keep = keep
        self.metrics = metrics
        self._writing: Future[None] | None = None
        # Its thread is started here: when memory has run out, starting one may fail, or hang.
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writer.submit(int).result()

    def save(self, engine: Engine, done: int, state: dict[str, Any], wait: bool = False) -> None:
        """Begin to write what the engine holds and `state`, as step `done`; older ones beyond `keep` go.

        Raises ValueError where the one before could not be written; with `wait`, where this one can't.
        """
        self.finish(engine.device)  # one at a time
        tensors, numbers = engine.snapshot()
        if rank() == 0:
            text = json.dumps({"step": done, **state, ENGINE: numbers})
            mirror = mirroring()
            send = partial(mirror.send, mirror.freeze()) if mirror else None
            self._writing = self._writer.submit(self._write, tensors, text, done, send)
        if wait:
            self.finish(engine.device)

    @property
    def failed(self) -> bool:
        """Whether this rank knows that what was being written is not whole."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def finish(self, device: torch.device) -> None:
        """Wait for what is being written. Raises ValueError, on all ranks, where it can't be."""
        writing, self._writing = self._writing, None
        error = writing.exception() if writing else None  # waits
        if sum_over_ranks(torch.tensor(float(error is not None), device=device)):
            raise error or Outage(f"{self.folder}: rank 0 could not write the checkpoint")

    def close(self) -> None:
        """Let what is being written come to its end."""
        if self._writing:
            futures.wait([self._writing])
            self._writing = None
        self._writer.shutdown(wait=False)

    def _write(
        self, tensors: dict[str, Tensor], state: str, done: int, send: Callable[[], None] | None
    ) -> None:
        target = self._path(done)
        begun = target.with_suffix(".partial")
        content = safetensors.torch.save(tensors, {"state": state})
        tensors.clear()  # one copy is enough
        try:
            shutil.rmtree(begun, ignore_errors=True)
            begun.mkdir(parents=True)
            (begun / STATE).write_bytes(content)
            record = {STATE: xxhash.xxh3_128_hexdigest(content)}
            write_whole(begun / CHECKSUMS, json.dumps(record, indent=2) + "\n")
            if self.metrics.exists():
                to_disk(self.metrics)
            replace_folder(begun, target)
            steps = self._steps()  # later ones are damaged: the run went back past them
            for old in {*steps} - {*[step for step in steps if step <= done][-self.keep :]}:
                shutil.rmtree(self._path(old))
        except OSError as error:
            raise ValueError(
                f"the checkpoint {begun} can't be written ({error.strerror}); make room and continue with "
                "--resume, from the newest whole one"
            ) from None
        if send:
            send()

    def load(self, engine: Engine) -> dict[str, Any] | None:
        """Read the newest whole checkpoint; returns its state, None where none was ever written.

        Damaged ones are named and passed over. Raises ValueError where all are damaged.
        """
        newest = self.newest() if rank() == 0 else 0  # the sum over ranks is then rank 0's
        found = torch.tensor(float(newest), dtype=torch.float64, device=engine.device)
        step = int(sum_over_ranks(found))
        if step == DAMAGED:
            raise ValueError(f"every checkpoint in {self.folder} is damaged; remove it to train anew")
        if step == NONE:
            return None
        path = self._path(step)
        tensors, state = read_state(path / STATE)
        try:
            engine.load(tensors, state.pop(ENGINE))
        except ValueError as error:
            raise ValueError(f"the checkpoint {path} is of another training: {error}") from None
        return state

    def newest(self) -> int:
        """The step of the newest whole checkpoint, damaged ones named; NONE where there is none at all,
        DAMAGED where all are.
        """
        steps = self._steps()
        return next((step for step in reversed(steps) if self._is_whole(step)), DAMAGED if steps else NONE)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _steps(self) -> list[int]:
        found = self.folder.glob("step-*") if self.folder.is_dir() else []
        names = (path.name.removeprefix("step-") for path in found)
        return sorted(int(name) for name in names if name.isdecimal())

    def _is_whole(self, step: int) -> bool:
        path = self._path(step)
        try:
            recorded = parse_json((path / CHECKSUMS).read_bytes())
            damage = [name for name, said in recorded.items() if checksum(path / name) != said]
        except FileNotFoundError as error:
            damage = [f"{Path(error.filename).name} is missing"]
        except (OSError, ValueError, AttributeError) as error:
            damage = [f"{CHECKSUMS}: {error}"]
        if damage:
            print(
                f"warning: the checkpoint {path} is damaged ({damage[0]}) and is skipped", file=sys.stderr
            )
        return not damage


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint's file. Raises ValueError where it is none."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
            state = parse_json((file.metadata() or {})["state"].encode())
        if not isinstance(state, dict) or not {"step", "best", ENGINE} <= state.keys():
            raise ValueError("it has no state")
    except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the checkpoint {path} can't be read ({reason}); remove its folder and resume"
        ) from None
    return tensors, state
