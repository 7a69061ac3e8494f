"""The jobs from Python: the same settings, the same run folders, the summary returned.

from launcher.api import run
summary = run(FinetuneConfig(model="TEACHER", task=task), "runs/teacher")
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.whole import write_whole
from launcher.jobs import JOBS
from launcher.runs import CALLED
from launcher.settings import to_yaml


def run(config: Any, folder: str | Path, *, processes: int = 0, resume: bool = False) -> dict[str, Any]:
    """Run the job that `config` holds the settings of, on this machine, to its end.

    It runs as the command does, in processes of its own: a notebook keeps its memory, its signal handlers
    and its environment, a run may be interrupted or fail without it, and may have several processes.
    What the job says is printed as it comes.

    Args:
        config: The settings: `FinetuneConfig`, `TaskDistillConfig` or those of any job with a run folder.
        folder: The run folder; a new one, unless `resume`.
        processes: Processes of one DeepSpeed job; 0 is one for each GPU, or one.
        resume: Continue the run in the folder, or start it there if it has not begun.

    Returns the content of the folder's summary.json. Raises ValueError where the settings can't work,
    with the command's one line, and RuntimeError where the job fails.
    """
    job = job_of(config)
    _refuse_unknown(config)
    options = [f"--run={folder}", *(["--resume"] if resume else [])]
    options += [f"--processes={processes}"] if processes else []
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Path(scratch, "config.yaml")
        write_whole(recipe, _yaml(config))
        code, last = _execute([sys.executable, "-m", "launcher.cli", job, f"--config={recipe}", *options])
    if code == 2:
        raise ValueError(last.removeprefix(f"distillery {job}: error: "))
    if code:
        raise RuntimeError(f"{job} ended with exit code {code}: {last}")
    return json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))


def _refuse_unknown(config: Any, place: str = "config") -> None:
    """Refuse an attribute that is no setting: Python lets any be set. Raises ValueError."""
    known = [field.name for field in fields(config)]
    for name, value in vars(config).items():
        if name not in known:
            raise ValueError(f"{place}.{name}: there is no such setting; there are {', '.join(known)}")
        if is_dataclass(value):
            _refuse_unknown(value, f"{place}.{name}")


def _yaml(config: Any) -> str:
    """Settings as a recipe. Raises ValueError where one is of a kind that a recipe can't hold."""
    try:
        return to_yaml(config)
    except yaml.YAMLError as error:
        raise ValueError(f"config: {error}; give plain numbers, texts and lists") from None


def job_of(config: Any) -> str:
    """The job that a dataclass holds the settings of. Raises ValueError where there is none."""
    kind = f"{type(config).__module__}:{type(config).__qualname__}"
    found = [name for name, job in JOBS.items() if job.config == kind and job.folder]
    if not found:
        raise ValueError(
            f"config: {type(config).__name__} is of no job with a run folder; give such settings"
        )
    return found[0]


def _execute(command: list[str]) -> tuple[int, str]:
    """Run a command and print what it says; returns its exit code and its last line."""
    last = ""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, CALLED: "1"},
        start_new_session=True,
    ) as child:
        assert child.stdout
        interrupted = False
        while True:
            try:
                for line in child.stdout:
                    print(line, end="", flush=True)
                    last = line.strip() or last
                break
            except KeyboardInterrupt:  # a training writes a checkpoint first; a second one ends it
                interrupted = True
                os.killpg(child.pid, signal.SIGINT)
        if interrupted:
            raise KeyboardInterrupt
    return child.returncode, last
