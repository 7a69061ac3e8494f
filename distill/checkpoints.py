"""Checkpoints of one stage: written beside and renamed, each file with a checksum, the oldest removed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import xxhash

from data_pipeline.untrusted import parse_json
from data_pipeline.whole import write_whole
from distill.encoders import replace_folder
from distill.engine import Engine, barrier, rank, sum_over_ranks

RECORD = "checksums.json"  # written last: a folder without it is not whole


class Checkpoints:
    """The checkpoints below a folder, `keep` of them. Every rank calls its methods together."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep

    def save(self, engine: Engine, done: int, state: dict[str, Any]) -> None:
        """Write what the engine holds and `state`, as step `done`; older ones beyond `keep` go."""
        target = self._path(done)
        partial = target.with_suffix(".partial")
        if rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        barrier()
        engine.save(partial, {"step": done, **state})
        barrier()
        if rank() == 0:
            write_whole(partial / RECORD, json.dumps(_checksums(partial), indent=2) + "\n")
            replace_folder(partial, target)
            steps = self._steps()
            for old in {*steps[: -self.keep], *(step for step in steps if step > done)} - {done}:
                shutil.rmtree(self._path(old))  # later ones are damaged, or this would not be their past
        barrier()

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


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return {path.relative_to(folder).as_posix(): checksum(path) for path in files}


def checksum(path: Path) -> str:
    """XXH3 of a file, read in pieces."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()
