"""A teacher's outputs in files, so that many students reuse them. Imports no torch.

FOLDER/SPLIT/logits-00000000.safetensors float32 (rows, outputs), in the order of the task's file
FOLDER/SPLIT/manifest.json               what they are of; written last: a folder that has it is whole

The manifest holds fingerprints of the texts (with the length they are cut to) and of the teacher
(weights, configuration, tokenizer of every member), and the precision that each member ran in. Outputs of
another text or teacher are refused, and of another precision where the teacher's is given.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import xxhash
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from data_pipeline.model_folder import model_folder
from data_pipeline.settings import TaskConfig
from data_pipeline.tasks import Examples, read_examples
from data_pipeline.untrusted import parse_json
from data_pipeline.vocabulary import TOKENIZER_FILES
from data_pipeline.whole import checksum, to_disk, write_whole
from distill.settings import TeacherConfig

MANIFEST = "manifest.json"
DECISIVE = ("config.json", *TOKENIZER_FILES)
VERSION = 1


def examples_fingerprint(examples: Examples, max_length: int) -> str:
    """A hash of the texts in their order and the length they are cut to; labels don't matter."""
    content = json.dumps([examples.firsts, examples.seconds, max_length])
    return xxhash.xxh3_128_hexdigest(content.encode())


def teacher_fingerprint(teacher: TeacherConfig) -> str:
    """A hash of what decides a teacher's outputs: every member's files and weight."""
    members = [[_folder_fingerprint(folder), weight] for folder, weight in teacher.members.items()]
    return xxhash.xxh3_128_hexdigest(json.dumps(members).encode())


@cache
def _folder_fingerprint(folder: str) -> str:
    digest = xxhash.xxh3_128()
    for path in sorted(Path(model_folder(folder)).iterdir()):
        if path.name in DECISIVE or path.match("model*.safetensors") or path.match("pytorch_model*.bin"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while piece := file.read(1 << 24):
                    digest.update(piece)
    return digest.hexdigest()


class Split:
    """The outputs of one file of a task."""

    def __init__(self, folder: Path, examples: Examples, task: TaskConfig, teacher: TeacherConfig):
        self.folder = folder
        self.rows = len(examples.firsts)
        self.identity = {
            "version": VERSION,
            "examples": examples_fingerprint(examples, task.max_length),
            "teacher": teacher_fingerprint(teacher),
            "rows": self.rows,
        }
        self.asked = teacher.precision
        self.members = len(teacher.members)

    def part(self, begin: int) -> Path:
        """The file of the rows from `begin` on."""
        return self.folder / f"logits-{begin:08d}.safetensors"

    def begin(self, precisions: list[str]) -> None:
        """Prepare the folder, which is not whole, for outputs of members that run in these precisions.

        What a killed run left of the same text, teacher and precisions stays; anything else is removed.
        """
        self.identity["precision"] = precisions
        mark, made_of = self.folder / "made_of.json", json.dumps(self.identity)
        left = mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") == made_of
        if not left or (self.folder / MANIFEST).exists():
            for old in self.folder.glob("*"):
                old.unlink()
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(mark, made_of)

    def is_whole(self) -> bool:
        """Whether nothing is left to do."""
        try:
            self.check()
        except ValueError:
            return False
        return True

    def write(self, begin: int, logits: np.ndarray) -> None:
        """Write one file, beside and renamed."""
        path = self.part(begin)
        partial = path.with_name(path.name + ".partial")
        save_file({"logits": np.ascontiguousarray(logits, dtype=np.float32)}, partial)
        to_disk(partial)
        os.replace(partial, path)

    def finish(self) -> None:
        """Write the manifest, which makes the folder whole."""
        files = {path.name: checksum(path) for path in sorted(self.folder.glob("*.safetensors"))}
        write_whole(self.folder / MANIFEST, json.dumps({**self.identity, "files": files}, indent=2) + "\n")

    def check(self) -> None:
        """Refuse outputs that are missing, unfinished, damaged or of another text, teacher or precision."""
        path = self.folder / MANIFEST
        again = "run `distillery label` with this task and teacher"
        if not path.is_file():
            raise ValueError(f"teacher.outputs: {self.folder} holds no finished outputs; {again}")
        try:
            manifest = parse_json(path.read_bytes())
            files = dict(manifest["files"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"teacher.outputs: {path} is damaged; {again}") from None
        kinds = {"version": "format", "teacher": "teacher", "examples": "text or max_length"}
        for key, what in kinds.items():
            if manifest.get(key) != self.identity[key]:
                raise ValueError(f"teacher.outputs: {self.folder} was made with another {what}; {again}")
        made = manifest.get("precision")
        if self.asked != "auto" and made != [self.asked] * self.members:
            raise ValueError(
                f"teacher.outputs: {self.folder} was made in {json.dumps(made)}, and teacher.precision is "
                f"{self.asked}; {again}"
            )
        for name, said in files.items():
            if (
                Path(name).name != name
                or not (self.folder / name).is_file()
                or checksum(self.folder / name) != said
            ):
                raise ValueError(f"teacher.outputs: {self.folder / name} is missing or damaged; {again}")

    @property
    def precision(self) -> str:
        """What its members ran in; of outputs that are whole."""
        made = parse_json((self.folder / MANIFEST).read_bytes()).get("precision")
        return ", ".join(sorted(set(made or ["fp32"])))

    def read(self) -> np.ndarray:
        """The logits, (rows, outputs). Raises ValueError where they are damaged."""
        paths = sorted(self.folder.glob("*.safetensors"))
        parts = [_logits(path) for path in paths]
        if len({part.shape[1] for part in parts}) > 1:
            raise ValueError(f"teacher.outputs: files in {self.folder} differ in their number of outputs")
        if (rows := sum(map(len, parts))) != self.rows:
            raise ValueError(f"teacher.outputs: {self.folder} holds {rows} rows of {self.rows}")
        return np.concatenate(parts)


def _logits(path: Path) -> np.ndarray:
    try:
        logits = load_file(path)["logits"]
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"teacher.outputs: {path} is damaged ({error})") from None
    if logits.ndim != 2 or logits.dtype != np.float32:
        raise ValueError(f"teacher.outputs: {path} holds no table of float32 numbers")
    return logits


def splits(folder: Path, task: TaskConfig, teacher: TeacherConfig) -> dict[str, Split]:
    """The outputs of every file of a task, by split: train, dev and those of `more_dev`."""
    return {
        name: Split(folder / name, read_examples(path, task), task, teacher)
        for name, path in task.files.items()
    }


def check_outputs(teacher: TeacherConfig, task: TaskConfig) -> None:
    """Refuse `teacher.outputs` that don't belong to this teacher and task."""
    if teacher.outputs:
        for split in splits(Path(teacher.outputs), task, teacher).values():
            split.check()
