"""A run folder that a bucket mirrors, for nodes that share no file system.

On every node the run folder is a plain folder on the node's own disk. What the bucket holds of the run is
brought there before a leg; rank 0's node sends what is new with every checkpoint and at the end. What a
resumed run needs is sent before the checkpoint that needs it, so at any moment the newest checkpoint of the
bucket is one to go on from.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

from data_pipeline.bucket import Bucket
from data_pipeline.whole import CHECKSUMS, beside

STOP = "stop"  # the wish that the training stop
LOCK = "lock"  # whose run this is; in the bucket, who writes
OWN = {STOP, LOCK, "ray", "plan.json"}  # each node's own
SETTINGS = ("config.yaml", "command.txt", "summary.json")  # summary.json is of a run that has ended
STEPS = "checkpoints"
NEW = ".new"  # a folder that is about to replace the one without
LOOKS = 5.0  # seconds between two looks for a wish to stop

_open: Mirror | None = None  # this process's, while it sends


class Mirror:
    """The run of a URL: `bucket` there, `folder` here."""

    def __init__(self, url: str):
        self.bucket = Bucket(url)
        home = Path.home() / ".cache" / "distillery" / "runs"
        self.folder = home / xxhash.xxh3_64_hexdigest(url.encode()) / "run"
        self._claim = b""
        self._sent: dict[str, object] = {}

    # ------------------------------------------------------------------------- from the bucket
    def bring_settings(self) -> None:
        """Bring what says which run the bucket holds. Raises ValueError where it holds something else."""
        held = self.bucket.listed().keys() - OWN
        if SETTINGS[0] not in held:
            if held:
                raise ValueError(
                    f"--storage: {self.bucket.url} is not empty and holds no run; give another"
                )
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in SETTINGS:
            self._bring_file(name)

    def send_settings(self) -> None:
        """Send what a run was begun with, or goes on with."""
        for name in SETTINGS[:2]:
            self.bucket.put(name, (self.folder / name).read_bytes())

    def bring(self) -> None:
        """Make the folder what the bucket holds of the run: its newest whole checkpoints, and all else.

        Raises ValueError where every checkpoint of a stage is damaged.
        """
        (self.folder / STOP).unlink(missing_ok=True)
        held = [name for name in self.bucket.listed() if name.split("/")[0] not in OWN]
        kept = {name for name in held if "/" not in name and self._bring_file(name)}
        tops = {name.split("/")[0].removesuffix(NEW) for name in held if "/" in name}
        unsent = set()  # brought from NAME.new, and to be sent again as NAME
        for name in sorted(tops - {STEPS}):
            if self.bucket.bring(name, self.folder / name):
                kept.add(name)
            elif self.bucket.bring(name + NEW, self.folder / name):
                unsent.add(name)
        whole = [step for step in _steps(held) if f"{step}/{CHECKSUMS}" in held]
        for stage in {step.rpartition("/")[0] for step in whole}:
            for step in sorted((step for step in whole if step.startswith(f"{stage}/")), reverse=True):
                if self.bucket.bring(step, self.folder / step, mark=True):
                    kept.add(step)
                    break
            else:
                raise ValueError(
                    f"every checkpoint in {self.bucket.url} is damaged: {stage}; remove it to train anew"
                )
        for path in [*self.folder.iterdir(), *self.folder.glob(f"{STEPS}/*/*")]:
            name = path.relative_to(self.folder).as_posix()
            if name in kept:
                self._sent[name] = _stamp(path)
            elif name not in OWN | {STEPS} | unsent:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _bring_file(self, name: str) -> bool:
        content, target = self.bucket.get(name), self.folder / name
        if content is None:
            target.unlink(missing_ok=True)
            return False
        partial = beside(target)
        partial.write_bytes(content)
        partial.replace(target)
        return True

    # --------------------------------------------------------------------------- to the bucket
    def claim(self) -> None:
        """Be the one who writes: whoever did so before is refused from here on."""
        self._claim = f"process {os.getpid()} of {socket.gethostname()}, {uuid.uuid4().hex}".encode()
        self.bucket.put(LOCK, self._claim)

    def _refuse_others(self) -> None:
        if (holder := self.bucket.get(LOCK)) != self._claim:
            who = (holder or b"nobody").decode(errors="replace").partition(",")[0]
            raise ValueError(
                f"--storage: {self.bucket.url} is being written by another run ({who}); this one ends"
            )

    @contextmanager
    def sending(self) -> Iterator[None]:
        """While a job runs on rank 0, each of its checkpoints is sent; at its end what else there is."""
        global _open
        _open, ended = self, threading.Event()
        threading.Thread(target=self._listen, args=(ended,), name="mirror", daemon=True).start()
        try:
            yield
        except BaseException:
            with suppress(ValueError, OSError):  # what ended the job is told
                self.send(self.freeze())
            raise
        else:
            self.send(self.freeze())
        finally:
            _open = None
            ended.set()

    def _listen(self, ended: threading.Event) -> None:
        """Pass the wish to stop on to this node."""
        while not ended.wait(LOOKS):
            with suppress(ValueError, OSError):  # an outage is told by what is sent
                if self.bucket.get(STOP) is not None:
                    (self.folder / STOP).touch()
                    return

    def freeze(self) -> Path:
        """All but the checkpoints as it is at this moment, as links: folders are replaced meanwhile."""
        frozen = self.folder.with_name("frozen")
        shutil.rmtree(frozen, ignore_errors=True)

        def others(folder: str, names: list[str]) -> set[str]:
            own = OWN | {STEPS} if Path(folder) == self.folder else set()
            return {name for name in names if name in own or name.endswith((".partial", ".old"))}

        shutil.copytree(
            self.folder, frozen, ignore=others, copy_function=os.link, ignore_dangling_symlinks=True
        )
        return frozen

    def send(self, frozen: Path) -> None:
        """Send what is new, and the checkpoints; those that are not here any more go. Raises ValueError."""
        self._refuse_others()
        held = self.bucket.listed()
        last = frozen / SETTINGS[-1]
        paths = sorted(path for path in frozen.iterdir() if path != last)
        steps = sorted(path for path in self.folder.glob(f"{STEPS}/*/step-*") if path.suffix == "")
        for path in [*paths, *steps, *([last] if last.is_file() else [])]:
            root = self.folder if path in steps else frozen
            self._send(path.relative_to(root).as_posix(), path, held)
        here = {step.relative_to(self.folder).as_posix() for step in steps}
        for step in sorted(_steps(held) - here):
            self.bucket.remove_folder(step)
        shutil.rmtree(frozen)

    def _send(self, name: str, path: Path, held: dict[str, int]) -> None:
        stamp = _stamp(path)
        known = self._sent.get(name) == stamp
        if known and (path.is_file() or f"{name}/{CHECKSUMS}" in held):
            return
        if path.is_file():
            self.bucket.put(name, path.read_bytes())
        else:
            files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
            files = [file for file in files if file != CHECKSUMS]
            is_step = name.startswith(f"{STEPS}/")
            if f"{name}/{CHECKSUMS}" in held:
                if not is_step and f"{name}{NEW}/{CHECKSUMS}" not in held:
                    self.bucket.put_folder(name + NEW, path, files, self._refuse_others)
                self.bucket.remove(f"{name}/{CHECKSUMS}")  # until the new one is whole, `name + NEW` is
            self.bucket.put_folder(name, path, files, self._refuse_others)
            sent = {f"{name}/{file}" for file in [*files, CHECKSUMS]}
            self.bucket.remove(*(old for old in held if old.startswith(f"{name}/") and old not in sent))
            if not is_step:
                self.bucket.remove_folder(name + NEW)
        self._sent[name] = stamp


def mirroring() -> Mirror | None:
    """The mirror of this process's run folder; None where it sends none."""
    return _open


def _steps(names: Iterable[str]) -> set[str]:
    """The checkpoints that files of a bucket belong to."""
    return {found[0] for name in names if (found := re.match(rf"{STEPS}/[^/]+/step-\d+(?=/)", name))}


def _stamp(path: Path) -> object:
    """A value that changes whenever a file, or one in a folder, is written anew."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stats = [(file.relative_to(path), file.stat()) for file in files]
    return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
