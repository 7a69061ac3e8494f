"""Run folders as the launcher sees them: begun, resumed, or refused."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.whole import write_whole
from launcher.jobs import JOBS
from launcher.settings import to_yaml

CALLED = "DISTILLERY_CALLED"  # in the environment of a command that launcher/api.py runs
CLAIM = "beginning"  # in a run folder, while a run begins there
HOW = ("zero", "micro_batch_size", "patience", "skip_non_finite")  # of `engine`; may change on --resume


def refuse_other_job(folder: Path, name: str) -> None:
    """Refuse to resume a run of another job. Raises ValueError."""
    typed = folder / "command.txt"
    words = shlex.split(typed.read_text(encoding="utf-8")) if typed.is_file() else []
    if words[1:] and words[1] in JOBS and words[1] != name:
        raise ValueError(f"--resume: {folder} holds a run of the job {words[1]}; give another --run")


def refuse_other_run(folder: Path, config: Any, resume: bool) -> None:
    """Refuse a folder that holds another run. Raises ValueError."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--run: {folder} is a file; give a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    stored = folder / "config.yaml"
    if not stored.is_file():
        raise ValueError(f"--run: {folder} is not empty and holds no run; give another folder")
    if not resume:
        raise ValueError(
            f"--run: {folder} holds another run; give a new folder, or --resume to continue it"
        )
    before = _with_defaults(yaml.safe_load(stored.read_text(encoding="utf-8")), config)
    if changed := _changed(_kept(before), _kept(yaml.safe_load(to_yaml(config)))):
        raise ValueError(
            f"--resume: the settings differ from {stored}: {', '.join(changed[:5])}; leave them out, or "
            "give a new --run"
        )


def _changed(before: Any, now: Any, name: str = "") -> list[str]:
    """Names of the settings that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = {**before, **now}
        return [each for key in keys for each in _changed(before.get(key), now.get(key), f"{name}.{key}")]
    return [] if before == now else [name.removeprefix(".") or "all"]


def _with_defaults(stored: Any, config: Any) -> Any:
    """Stored settings, and the defaults of those that an earlier release had not."""
    if not (isinstance(stored, dict) and is_dataclass(config)):
        return stored
    filled = {name: _with_defaults(value, getattr(config, name, None)) for name, value in stored.items()}
    added = [each for each in fields(config) if each.name not in stored and each.default is not MISSING]
    return filled | {each.name: each.default for each in added}


def _kept(settings: Any) -> Any:
    """The settings that a resumed run must keep: all but those of how the work is done."""
    if not isinstance(settings, dict):
        return settings
    if isinstance(base := settings.get("base"), dict):  # of a search
        return {**settings, "base": _without_how(base), "workers": None}
    return _without_how(settings)


def _without_how(settings: dict[str, Any]) -> dict[str, Any]:
    """A training's settings without those of HOW."""
    engine = settings.get("engine")
    if not isinstance(engine, dict):
        return settings
    return {**settings, "engine": {key: value for key, value in engine.items() if key not in HOW}}


def claim(folder: Path, name: str, config: Any, command: list[str] | None = None) -> None:
    """Begin a run in a folder that holds none. Raises ValueError where another has begun one meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / CLAIM).mkdir()  # of several that try at once one succeeds
    except FileExistsError:
        raise ValueError(
            f"--run: {folder}: another run is beginning there; give a new folder, or, where it was killed "
            f"while it began, remove {folder / CLAIM}"
        ) from None
    try:
        if (folder / "config.yaml").is_file():
            raise ValueError(f"--run: another run has begun in {folder}; give a new folder")
        begin(folder, name, config, command)
    finally:
        (folder / CLAIM).rmdir()


def begin(folder: Path, name: str, config: Any, command: list[str] | None = None) -> None:
    """Write config.yaml and command.txt into a run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.yaml", to_yaml(config))
    typed = command or ["distillery", name, "--config", str(folder / "config.yaml")]
    write_whole(folder / "command.txt", shlex.join(typed) + "\n")


def go_on(folder: Path, config: Any) -> None:
    """Store the settings of a resumed run, some of which may have changed: see `refuse_other_run`."""
    if (folder / "config.yaml").read_text(encoding="utf-8") != (recipe := to_yaml(config)):
        write_whole(folder / "config.yaml", recipe)


def undo(folder: Path) -> None:
    """Take away what `begin` wrote."""
    for name in ("config.yaml", "command.txt"):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def typed_command() -> list[str] | None:
    """What the user typed; None for launcher/api.py, whose recipe is a temporary file."""
    return None if CALLED in os.environ else ["distillery", *sys.argv[1:]]


def as_slice(config: Any, run: str, number: int, count: int) -> tuple[Any, str]:
    """The settings and the run folder of slice `number` of `count`; all share one shards folder."""
    shards = config.shards or f"{run}/shards"
    return replace(config, slice=f"{number}/{count}", shards=shards), f"{run}/slice-{number}-of-{count}"


def tell_whole_run(folder: Path) -> None:
    """Copy a slice's summary to the whole run's folder if it was the last one to end."""
    summary = folder / "summary.json"
    if folder.name.startswith("slice-") and summary.is_file():
        text = summary.read_text(encoding="utf-8")
        if "missing_pieces" not in json.loads(text):
            write_whole(folder.parent / "summary.json", text)
