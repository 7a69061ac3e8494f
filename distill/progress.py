"""Progress of a training stage: a bar with speed and time left, or plain lines where no terminal is."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15


class TrainingProgress:
    """Shows steps done, the last figures and the time left, on standard error."""

    def __init__(self, name: str, start: int, total: int, show: bool):
        self.name, self.done, self.start, self.total = name, start, start, total
        self.text = ""
        self.started = self.last_line = time.monotonic()
        console = Console(stderr=True)
        self.lines = show and not console.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not show or self.lines,
        )
        self.task = self.bar.add_task(name, total=total, completed=start, text="")

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()
        if self.lines and kind is None and self.done > self.start:
            self._print()

    def advance(self) -> None:
        """One step is done."""
        self.done += 1
        self.bar.advance(self.task)
        if self.lines and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self._print()

    def describe(self, text: str) -> None:
        """Show the newest figures."""
        self.text = text
        self.bar.update(self.task, text=text)

    def _print(self) -> None:
        self.last_line = time.monotonic()
        elapsed = self.last_line - self.started
        left = elapsed / max(1, self.done - self.start) * (self.total - self.done)
        minutes, seconds = divmod(round(left), 60)
        line = f"{self.name}: step {self.done}/{self.total}, {minutes}:{seconds:02d} left  {self.text}"
        print(line, file=sys.stderr, flush=True)
