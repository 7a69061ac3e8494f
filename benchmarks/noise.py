"""Benchmark `noise`: noisy variants of training sentences, ours against iclassifier's augment_data.py.

    python -m benchmarks.noise --data FILE [--reference DIR] [--json FILE] [--rounds N]

FILE is a .tsv with the column `sentence`, such as SST-2's train.tsv; DIR a checkout of dsindex/iclassifier,
whose script is distil-bilstm's with a cap on the words that change. Each side is a command, `distillery
augment --method noise` and the script, in turns, on a few rows, which is its start-up, and on all: what
the others take is the rate without it. Neither uses a tagger, which would be a package of others: words are
masked, alone and in n-grams, and none is replaced (`--noise.replaced 0`, `--no_analyzer`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.pregenerate import TOKENIZER, run_command
from benchmarks.record import print_table, take_turns, write_record

SCRIPT = "augment_data.py"
TRIES = 20
PROCESSES = os.cpu_count() or 1  # those of the original's --parallel, which has no number of its own
FEW = 10
NOTE = (
    "Medians of {rounds} runs, in turns, of {rows:,} sentences, 20 tries; start-up is a run on {few}, "
    "which rows/s leave out.\n"
    "Parallel is {processes} processes. The original drops what repeats among a sentence's variants; ours "
    "what repeats in the whole file. "
    "It writes pieces that a killed run resumes from, and the same rows on any number of processes.\n"
    "Repeated are variants that are a sentence, or another variant, of the file. "
    "Peak memory (2^20 bytes) is the largest of all processes of a side together; "
    "it grows by the last column for 1,000 sentences."
)


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        data: The file of sentences.
        reference: The original's checkout; None measures ours alone.
        rounds: Runs of each side that count.
    """

    data: Path
    reference: Path | None = None
    rounds: int = 3

    def sentences(self) -> list[str]:
        """The column `sentence`. Raises ValueError where there is none."""
        with self.data.open(encoding="utf-8") as lines:
            head = next(lines, "").rstrip("\n").split("\t")
            if "sentence" not in head:
                raise ValueError(f"--data {self.data}: no column `sentence`; it has {', '.join(head)}")
            place = head.index("sentence")
            return [line.rstrip("\n").split("\t")[place] for line in lines]


class Seen(NamedTuple):
    """What was seen of one command."""

    seconds: float
    peak_mb: float
    rows: int
    repeated: int


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    try:
        settings = _settings(options)
        sentences = settings.sentences()
        if len(sentences) <= FEW:
            raise ValueError(f"--data {settings.data}: {len(sentences)} rows; give more than {FEW}")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    samples = measure(settings, sentences)
    figures = summarise(samples)
    show(figures, settings, len(sentences))
    if options.json:
        write_record(Path(options.json), "noise", arguments, figures, samples)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.noise", description=__doc__.split("\n")[0] if __doc__ else ""
    )
    parser.add_argument("--data", required=True, metavar="FILE", help="a .tsv with the column `sentence`")
    parser.add_argument("--reference", metavar="DIR", help="a checkout of iclassifier")
    parser.add_argument("--json", metavar="FILE", help="write the record there")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="runs of each side that count")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    if options.rounds < 1:
        raise ValueError("--rounds: give 1 or more")
    if not Path(options.data).is_file():
        raise ValueError(f"--data {options.data}: no such file")
    reference = None if options.reference is None else Path(options.reference).resolve()
    if reference and not (reference / SCRIPT).is_file():
        raise ValueError(
            f"--reference {options.reference}: no {SCRIPT} there; give a checkout of iclassifier"
        )
    return Settings(Path(options.data), reference, options.rounds)


# ------------------------------------------------------------------------------------- measuring
def ours(processes: int, data: Path, out: Path) -> list[str]:
    """The user's command; its rows are in `out`/augmented.jsonl."""
    return [
        *(sys.executable, "-m", "launcher.cli", "augment", "--method", "noise", "--file", str(data)),
        *("--noise.replaced", "0", "--noise.ngrams", "mask", "--variants", str(TRIES), "--label", "null"),
        *("--model", TOKENIZER, "--processes", str(processes), "--run", str(out)),
    ]


def original(script: Path, more: list[str], data: Path, out: Path) -> list[str]:
    """The original's command, which reads no header; its rows are in `out`."""
    plain = data.with_suffix(".rows")
    return [
        *(sys.executable, str(script), "--input", str(plain), "--output", str(out)),
        *("--n_iter", str(TRIES), "--no_analyzer", "--lower", *more),
    ]


def sides(settings: Settings) -> dict[str, Callable[[Path, Path], list[str]]]:
    """The commands that are measured, of a file and of where they write."""
    found: dict[str, Callable[[Path, Path], list[str]]] = {}
    if settings.reference:
        script = settings.reference / SCRIPT
        found["original"] = partial(original, script, [])
        found["original_parallel"] = partial(original, script, ["--parallel"])
    return {**found, "ours": partial(ours, 1), "ours_parallel": partial(ours, PROCESSES)}


def measure(settings: Settings, sentences: list[str]) -> dict[str, list[float]]:
    """Seconds of every side on a few sentences and on all, its peak of memory in MB, its rows."""
    samples: dict[str, list[float]] = {"sentences": [len(sentences)]}
    with tempfile.TemporaryDirectory() as scratch:
        for size, part in (("few", sentences[:FEW]), ("all", sentences)):
            data = Path(scratch) / f"{size}.tsv"
            rows = "".join(f"{sentence}\n" for sentence in part)
            data.write_text(f"sentence\n{rows}", encoding="utf-8")
            data.with_suffix(".rows").write_text(rows, encoding="utf-8")
            turns = {name: partial(_run, name, command, data) for name, command in sides(settings).items()}
            for name, runs in _turns(turns, settings.rounds).items():
                for key, values in runs.items():
                    samples[f"{name}_{size}_{key}"] = values
    return samples


def _turns(turns: Mapping[str, Callable[[], Seen]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """What was seen of every side in its turns, by name."""
    seen: dict[str, list[Seen]] = {name: [] for name in turns}

    def turn(name: str) -> float:
        seen[name].append(turns[name]())
        return seen[name][-1].seconds

    take_turns({name: partial(turn, name) for name in turns}, rounds)
    return {
        name: {key: [getattr(run, key) for run in runs] for key in Seen._fields}
        for name, runs in seen.items()
    }


def _run(name: str, command: Callable[[Path, Path], list[str]], data: Path) -> Seen:
    """Run a side's command on a file."""
    with tempfile.TemporaryDirectory(dir=data.parent) as own:
        out = Path(own) / "out"
        run = run_command(name, command(data, out), Path(own) / "log.txt")
        sentences = [as_compared(line) for line in data.read_text(encoding="utf-8").splitlines()[1:]]
        rows, repeated = _count(written(out), sentences)
        return Seen(run.seconds, run.peak_mb, rows, repeated)


def written(out: Path) -> Iterator[str]:
    """The texts that a side wrote."""
    if out.is_dir():
        with (out / "augmented.jsonl").open(encoding="utf-8") as lines:
            yield from (as_compared(json.loads(line)["sentence"]) for line in lines)
    else:
        with out.open(encoding="utf-8") as lines:
            yield from (as_compared(line.rpartition("\t")[0]) for line in lines)


def as_compared(text: str) -> str:
    """A text without what the original doesn't keep: its spacing and its capitals."""
    return " ".join(text.split()).lower()


def _count(texts: Iterator[str], sentences: list[str]) -> tuple[int, int]:
    """How many rows there are, and how many of the variants repeat a sentence or another variant."""
    originals, rows = {*sentences}, 0
    new: set[str] = set()
    for text in texts:
        rows += 1
        if text not in originals:
            new.add(text)
    return rows, rows - len(sentences) - len(new)


# ----------------------------------------------------------------------------------- what it says
def summarise(samples: Mapping[str, list[float]]) -> dict[str, float]:
    """Every side's figures; ratios where the original was measured too."""
    figures: dict[str, float] = {}
    for key in filter(lambda key: key.endswith("_all_seconds"), samples):
        name = key.removesuffix("_all_seconds")
        figures |= {f"{name}_{column}": value for column, value in _side(samples, name).items()}
        other = name.replace("ours", "original")
        if other != name and f"{other}_seconds" in figures:
            kind = name.removeprefix("ours")
            figures[f"speedup{kind}"] = round(figures[f"{other}_seconds"] / figures[f"{name}_seconds"], 3)
    return figures


def _side(samples: Mapping[str, list[float]], name: str) -> dict[str, float]:
    """Seconds, of which start-up, rows a second beyond it, repeated variants, memory and its growth."""
    few, whole = (
        {column: median(samples[f"{name}_{size}_{column}"]) for column in Seen._fields}
        for size in ("few", "all")
    )
    (sentences,) = samples["sentences"]
    more = {column: whole[column] - few[column] for column in Seen._fields}
    return {
        "seconds": round(whole["seconds"], 3),
        "start_s": round(few["seconds"], 3),
        "rows_per_s": round(more["rows"] / more["seconds"], 1),
        "rows": whole["rows"],
        "repeated_share": round(whole["repeated"] / max(1, whole["rows"] - sentences), 5),
        "peak_mb": round(whole["peak_mb"], 1),
        "growth_mb": round(1000 * more["peak_mb"] / (sentences - FEW), 3),
    }


COLUMNS = {
    "seconds": ("seconds", ",.1f"),
    "start_s": ("start-up, s", ".1f"),
    "rows_per_s": ("rows/s", ",.0f"),
    "rows": ("rows", ",.0f"),
    "repeated_share": ("repeated", ".2%"),
    "peak_mb": ("peak MB", ",.0f"),
    "growth_mb": ("growth, MB", ".2f"),
}


def show(figures: Mapping[str, float], settings: Settings, sentences: int) -> None:
    """Print the figures as a table, a row for each side."""
    rows = []
    for name in sides(settings):
        ratio = figures.get(f"speedup{name.removeprefix('ours')}") if name.startswith("ours") else None
        values = [format(figures[f"{name}_{column}"], spec) for column, (_, spec) in COLUMNS.items()]
        rows.append((name.replace("_", ", "), *values, "" if ratio is None else f"{ratio:.2f}"))
    heading = ("", *(head for head, _ in COLUMNS.values()), "times the original")
    note = NOTE.format(rounds=settings.rounds, rows=sentences, few=FEW, processes=PROCESSES)
    print_table("Noisy variants, no tagger", heading, rows, note)
    if not settings.reference:
        print("Ours alone: for the comparison, --reference DIR names a checkout of iclassifier")


if __name__ == "__main__":
    sys.exit(main())
