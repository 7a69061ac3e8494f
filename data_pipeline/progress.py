"""Progress of long work, on standard error: a bar in a terminal, else lines, JSON or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from data_pipeline.settings import progress_mode

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 15


class Progress:
    """Shows what is done, the last figures and the time left.

    $DISTILLERY_PROGRESS says how: `auto` (a bar in a terminal, lines elsewhere), `lines`, `json` (an
    object a line), or `none`.

    Args:
        name: Of the work.
        total: How much there is of it; 0 where that is not known.
        start: How much was done before.
        unit: What is counted.
        show: Whether this process shows anything: of many, one does.

    Raises ValueError where $DISTILLERY_PROGRESS is something else.
    """

    def __init__(self, name: str, total: int, start: int = 0, unit: str = "step", show: bool = True):
        self.name, self.total, self.start, self.done, self.unit = name, total, start, start, unit
        self.text = ""
        self.figures: Mapping[str, Any] = {}
        self.said: tuple[int, str] | None = None
        self.started = self.last_line = time.monotonic()
        console = Console(stderr=True)
        mode = progress_mode() if show else "none"
        if mode == "auto":
            mode = "bar" if console.is_terminal else "lines"
        self.print = {"lines": self._line, "json": self._json}.get(mode)
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=mode != "bar",
        )
        self.task = self.bar.add_task(name, total=total or None, completed=start, text="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()
        last = (self.done, self.text)
        if self.print and kind is None and self.done > self.start and last != self.said:
            self._say()

    def advance(self) -> None:
        """One more is done."""
        self.reach(self.done + 1)

    def reach(self, done: int) -> None:
        """So much of the total is done."""
        self.done = done
        self.bar.update(self.task, completed=done)
        if self.print and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self._say()

    def describe(self, text: str, figures: Mapping[str, Any] | None = None) -> None:
        """Show the newest figures, in words; JSON has them by name."""
        self.text, self.figures = text, figures or {}
        self.bar.update(self.task, text=text)

    def _say(self) -> None:
        self.last_line, self.said = time.monotonic(), (self.done, self.text)
        assert self.print
        print(self.print(), file=sys.stderr, flush=True)

    def _seconds_left(self) -> int | None:
        if not self.total:
            return None
        each = (self.last_line - self.started) / max(1, self.done - self.start)
        return round(each * (self.total - self.done))

    def _line(self) -> str:
        left = self._seconds_left()
        if left is None:
            return f"{self.name}: {self.unit} {self.done}  {self.text}"
        place = f"{self.unit} {self.done}/{self.total}, {left // 60}:{left % 60:02d} left"
        return f"{self.name}: {place}  {self.text}"

    def _json(self) -> str:
        place = {"progress": self.name, "unit": self.unit, "done": self.done, "total": self.total or None}
        return json.dumps({**place, "seconds_left": self._seconds_left(), **self.figures})


def tracked(things: Sequence[T], name: str, unit: str) -> Iterator[T]:
    """The things, one after another, with their progress."""
    with Progress(name, len(things), unit=unit) as progress:
        for thing in things:
            yield thing
            progress.advance()
