"""The search's own record, RUN/trials.jsonl: what a killed search continues from. Imports no torch, no Ray.

Every line is an event of one candidate: refused; or begun, measured (repeatedly), and then finished,
stopped or failed; in a population also changed, when it is to go on from another's checkpoint. Its
configuration is in RUN/trials/NAME/config.yaml, its result beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.whole import write_whole
from tune.space import Values

ENDED = ("finished", "stopped", "failed", "refused")


@dataclass
class Trial:
    """A candidate and what became of it.

    Attributes:
        number: Its place in the search.
        values: What it sets.
        status: begun, finished, stopped (early), failed, or refused (never begun).
        shape: Of the untrained student: parameters, flops, latency_ms.
        measured: Pairs of share of the training and score on dev, in order.
        score: The best on dev of a finished trial.
        reason: Why it was refused or failed.
        changes: How often it was told to go on from another's checkpoint; `values` are those since the last
            time, and `measured` begins with the other's.
    """

    number: int
    values: Values
    status: str
    shape: dict[str, Any] = field(default_factory=dict)
    measured: list[tuple[float, float]] = field(default_factory=list)
    score: float | None = None
    reason: str = ""
    changes: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.number:04d}"

    @property
    def title(self) -> str:
        """Its name and settings; of a setting's name the last word alone where no other ends in it."""
        words = {key: key.rpartition(".")[2] for key in self.values}
        last = list(words.values())
        told = (
            f"{word if last.count(word) == 1 else key}={_short(self.values[key])}"
            for key, word in words.items()
        )
        return " ".join([self.name, *told])

    @property
    def last_score(self) -> float | None:
        """Its score; of a trial without one, the last measured on the way."""
        return self.score if self.score is not None else self.measured[-1][1] if self.measured else None


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class Record:
    """RUN/trials.jsonl, appended to event by event and read again on a resume."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / "trials.jsonl"
        self.trials: dict[int, Trial] = {}
        self.measurements: list[tuple[int, float, float]] = []  # of all trials, in their order in time
        if self.path.is_file():
            self._read()

    def _read(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        whole, _, torn = text.rpartition("\n")  # a killed search may leave half a line
        if torn:
            write_whole(self.path, whole + "\n" if whole else "")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{self.path}, line {number}: damaged; remove the line") from None

    def run(self, trial: Trial) -> Path:
        """A trial's run folder."""
        return self.folder / "trials" / trial.name

    def add(self, number: int, event: str, **facts: Any) -> Trial:
        """Record an event; returns the trial as it then is."""
        line = {"number": number, "event": event, **facts}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return self._take(line)

    def _take(self, line: dict[str, Any]) -> Trial:
        number, event = line["number"], line["event"]
        if event in ("begun", "refused"):
            self.trials[number] = Trial(number, line["values"], event, line.get("shape", {}))
        trial = self.trials[number]
        if event == "measured":
            trial.measured.append((line["share"], line["score"]))
            self.measurements.append((number, line["share"], line["score"]))
        elif event == "changed":
            trial.values, trial.changes = line["values"], line["changes"]
            trial.measured = list(self.trials[line["donor"]].measured)
        else:
            trial.status = event
            trial.score = line.get("score")
            trial.reason = line.get("reason", "")
        return trial

    @property
    def unfinished(self) -> list[Trial]:
        """Trials that a killed search was in the middle of."""
        return [trial for trial in self.trials.values() if trial.status == "begun"]

    @property
    def trained(self) -> int:
        """Candidates that were begun."""
        return sum(trial.status != "refused" for trial in self.trials.values())
