"""The reference of all settings, made of the dataclasses: `python -m launcher.reference FILE`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from docstring_parser import parse

from data_pipeline.whole import write_whole
from launcher.jobs import JOBS, load
from launcher.settings import OPTIONS


def page() -> str:
    """The whole page: a table for each job, then one for each part that jobs share."""
    configs = {name: load(job.config) for name, job in JOBS.items()}
    parts = [part for part in _parts(configs.values()) if part not in configs.values()]
    lines = [
        "# Settings",
        "",
        "Made of the dataclasses by `make docs`. A setting's name on the command line is its path:",
        "`batch_size` of `stage` is `--stage.batch_size`; a recipe nests them.",
    ]
    for name, config in configs.items():
        lines += ["", f"## distillery {name}", "", _sentence(JOBS[name].help), *_table(config)]
        if JOBS[name].folder:
            lines += ["", "And [where and how it runs](#where-and-how-it-runs)."]
    for part in sorted(parts, key=lambda part: part.__name__):
        lines += ["", f"## {part.__name__}", "", _cell(parse(part.__doc__ or "").description or "")]
        lines += _table(part)
    lines += ["", "## Where and how it runs", "", "| option | meaning |", "|---|---|"]
    lines += ["| `--run` | The run folder. |", "| `--on` | The place: local, slurm or ray. |"]
    lines += ["| `--processes` | Processes on each machine; 0 is one for each GPU, or one. |"]
    for option, (places, text) in OPTIONS.items():
        lines.append(f"| `--{option.replace('_', '-')}` | {_cell(text)} ({', '.join(places)}) |")
    lines += ["| `--resume` | Continue the run in the folder, or start it there. |"]
    lines += ["| `--dry-run` | Print what would run, and run nothing. |"]
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    """Words as a sentence; names in them keep their capitals."""
    return f"{text[:1].upper()}{text[1:]}."


def _parts(configs: Iterable[type]) -> list[type]:
    """The dataclasses that these are made of, each once."""
    found: list[type] = []
    for config in configs:
        for part in filter(None, map(_part, get_type_hints(config).values())):
            found += [each for each in [part, *_parts([part])] if each not in found]
    return found


def _part(hint: Any) -> type | None:
    """The dataclass of a setting that has settings of its own."""
    kinds = (kind for kind in (hint, *get_args(hint)) if isinstance(kind, type))
    return next(filter(is_dataclass, kinds), None)


def _table(config: type) -> Iterator[str]:
    told = {each.arg_name: each.description or "" for each in parse(config.__doc__ or "").params}
    hints = get_type_hints(config)
    yield from ("", "| setting | type | default | meaning |", "|---|---|---|---|")
    for field in fields(config):
        named = field.type.__name__ if isinstance(field.type, type) else str(field.type)
        part = _part(hints[field.name])
        kind = f"[{part.__name__}](#{_anchor(part)})" if part else f"`{_cell(named)}`"
        yield f"| `{field.name}` | {kind} | {_default(field)} | {_cell(told.get(field.name, ''))} |"


def _anchor(part: type) -> str:
    """Where a dataclass is told: by its name, or under the job that it holds the settings of."""
    own = f"{part.__module__}:{part.__name__}"
    return next(
        (f"distillery-{name}" for name, job in JOBS.items() if job.config == own), part.__name__.lower()
    )


def _default(field: Field) -> str:
    if field.default is not MISSING:
        return _shown(field.default)
    if field.default_factory is MISSING:
        return "needed"
    made = field.default_factory()
    if not is_dataclass(made):
        return _shown(made)
    return ", ".join(f"`{name}` {_shown(value)}" for name, value in _changes(made))


def _changes(made: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What a part of a job has otherwise than by its own defaults."""
    for field in fields(made):
        value = getattr(made, field.name)
        if is_dataclass(value):
            yield from _changes(value, f"{prefix}{field.name}.")
        elif value != (field.default if field.default_factory is MISSING else field.default_factory()):
            yield f"{prefix}{field.name}", value


def _shown(value: Any) -> str:
    return f"`{_cell(json.dumps(value, ensure_ascii=False))}`"


def _cell(text: str) -> str:
    """Text that stands in a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    write_whole(Path(sys.argv[1]), page())
