"""What a run's folder says of it: summary, metrics, settings, and the runs inside it."""

import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from distill.html_table import Row
from distill.legs import spent


@dataclass
class RecordedRun:
    """What a run folder says about itself; `summary` is None while the run is unfinished."""

    name: str
    summary: Row | None = None
    metrics: list[Row] = field(default_factory=list)
    config: str = ""
    command: str = ""
    versions: Row = field(default_factory=dict)
    written: str = ""
    notes: list[str] = field(default_factory=list)
    disagreements: Row = field(default_factory=dict)
    spent: Row = field(default_factory=dict)
    parts: list["RecordedRun"] = field(default_factory=list)


def is_run(path: Path) -> bool:
    """Whether a run wrote this folder, and has logged or ended."""
    return (path / "metrics.jsonl").is_file() or (path / "summary.json").is_file()


def parts_of(path: Path) -> list[Path]:
    """The runs that are direct sub-folders, `seed2` before `seed10`."""
    found = [child for child in path.iterdir() if child.is_dir() and is_run(child)]
    return sorted(found, key=lambda p: [t.zfill(9) for t in re.split(r"(\d+)", p.name)])


def read_run(path: Path, name: str, with_parts: bool = True) -> RecordedRun:
    """A run folder and the runs inside it."""
    files = [path / n for n in ("summary.json", "metrics.jsonl", "config.yaml", "command.txt")]
    date = max((f.stat().st_mtime for f in files if f.is_file()), default=path.stat().st_mtime)
    summary = read_json(path / "summary.json")
    metrics, notes = read_metrics(path / "metrics.jsonl")
    return RecordedRun(
        name=name,
        summary=summary,
        metrics=metrics,
        config=_read_text(path / "config.yaml"),
        command=_read_text(path / "command.txt").strip(),
        versions=read_json(path / "versions.json") or {},
        written=_finished(summary or {}, datetime.fromtimestamp(date, UTC)),
        notes=notes,
        disagreements=read_json(path / "disagreements.json") or {},
        spent=spent(path),
        parts=[read_run(p, p.name, False) for p in parts_of(path)] if with_parts else [],
    )


def _finished(summary: Row, written: datetime) -> str:
    """When a run ended, or where its summary does not say, when its files were written."""
    with suppress(ValueError):
        written = datetime.fromisoformat(str(summary.get("finished"))).astimezone(UTC)
    return written.strftime("%Y-%m-%d %H:%M UTC")


def read_metrics(path: Path) -> tuple[list[Row], list[str]]:
    """The lines of metrics.jsonl and what to know about them; only the last may be broken."""
    lines = _read_text(path).rstrip("\n").split("\n")
    rows, notes = [], []
    for number, line in enumerate(lines, start=1):
        row = _object(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            raise ValueError(f"{path}, line {number}: not a JSON object; repair or remove the line")
        elif line:
            notes.append("The last line of metrics.jsonl is cut off (a killed run?): skipped.")
    lost = sum(isinstance(v, float) and not math.isfinite(v) for row in rows for v in row.values())
    if lost:
        notes.append(f"Logged values that are NaN or infinite: {lost}, left out of the charts.")
    return rows, notes


def _object(text: str) -> Row | None:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_json(path: Path) -> Row | None:
    """An object in a file of its own; None where there is no file."""
    if not path.is_file():
        return None
    value = _object(_read_text(path))
    if value is None:
        raise ValueError(f"{path}: not a JSON object; repair or remove the file")
    return value
