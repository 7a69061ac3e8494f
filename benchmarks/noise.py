"""Benchmark `noise`: noisy variants of training sentences, ours against iclassifier's augment_data.py.

    python -m benchmarks.noise --data FILE [--reference DIR] [--json FILE] [--rounds N]

FILE is a .tsv with the column `sentence`, such as SST-2's train.tsv; DIR a checkout of dsindex/iclassifier,
whose script is distil-bilstm's with a cap on the words that change. Each side is a command, `distillery
augment --method noise` and the script, in turns, on a tenth of the rows and on all: what the others take
is the rate without imports and start. Neither uses a tagger, which would be a package of others: words are
masked, alone and in n-grams, and none is replaced (`--noise.replaced 0`, `--no_analyzer`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.pregenerate import TOKENIZER, run_command
from benchmarks.record import print_table, take_turns, write_record

SCRIPT = "augment_data.py"
TRIES = 20
PROCESSES = 2
NOTE = (
    "Medians of {rounds} runs, in turns, of {rows:,} sentences, 20 tries; rows/s leave out start-up.\n"
    "The original drops what repeats among a sentence's variants; ours what repeats in the whole file. "
    "It writes pieces that a killed run resumes from, and the same rows on any number of processes.\n"
    "Peak memory is the largest of all processes of a side together."
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


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    try:
        settings = _settings(options)
        sentences = settings.sentences()
        if len(sentences) < 10:
            raise ValueError(f"--data {settings.data}: {len(sentences)} rows; give 10 or more")
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
def ours(data: Path, out: Path, processes: int) -> list[str]:
    """The user's command; its rows are in `out`/augmented.jsonl."""
    return [
        *(sys.executable, "-m", "launcher.cli", "augment", "--method", "noise", "--file", str(data)),
        *("--noise.replaced", "0", "--noise.ngrams", "mask", "--variants", str(TRIES), "--label", "null"),
        *("--model", TOKENIZER, "--processes", str(processes), "--run", str(out)),
    ]


def original(data: Path, out: Path, more: list[str], *, script: Path) -> list[str]:
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
        found["original"] = lambda data, out: original(data, out, [], script=script)
        found["original_parallel"] = lambda data, out: original(data, out, ["--parallel"], script=script)
    found["ours"] = lambda data, out: ours(data, out, 1)
    found["ours_parallel"] = lambda data, out: ours(data, out, PROCESSES)
    return found


def measure(settings: Settings, sentences: list[str]) -> dict[str, list[float]]:
    """Seconds of every side on a tenth of the sentences and on all, its peak of memory in MB, its rows."""
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for size, part in (("few", sentences[: len(sentences) // 10]), ("all", sentences)):
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
        with (out / "augmented.jsonl" if out.is_dir() else out).open("rb") as lines:
            return Seen(run.seconds, run.peak_mb, sum(1 for _ in lines))


# ----------------------------------------------------------------------------------- what it says
def summarise(samples: Mapping[str, list[float]]) -> dict[str, float]:
    """Seconds, rows a second beyond start-up, memory; ratios where the original was measured too."""
    medians = {name: median(values) for name, values in samples.items()}
    figures: dict[str, float] = {}
    for key in filter(lambda key: key.endswith("_all_seconds"), samples):
        name = key.removesuffix("_all_seconds")
        rows = medians[f"{name}_all_rows"] - medians[f"{name}_few_rows"]
        figures[f"{name}_seconds"] = round(medians[key], 3)
        figures[f"{name}_rows_per_s"] = round(rows / (medians[key] - medians[f"{name}_few_seconds"]), 1)
        figures[f"{name}_peak_mb"] = round(medians[f"{name}_all_peak_mb"], 1)
        figures[f"{name}_rows"] = medians[f"{name}_all_rows"]
        other = name.replace("ours", "original")
        if other != name and f"{other}_seconds" in figures:
            kind = name.removeprefix("ours")
            figures[f"speedup{kind}"] = round(figures[f"{other}_seconds"] / figures[f"{name}_seconds"], 3)
    return figures


def show(figures: Mapping[str, float], settings: Settings, sentences: int) -> None:
    """Print the figures as a table, a row for each side."""
    rows = []
    for name in sides(settings):
        columns = (("seconds", ",.1f"), ("rows_per_s", ",.0f"), ("peak_mb", ",.0f"), ("rows", ",.0f"))
        ratio = figures.get(f"speedup{name.removeprefix('ours')}") if name.startswith("ours") else None
        values = [format(figures[f"{name}_{column}"], spec) for column, spec in columns]
        rows.append((name.replace("_", ", "), *values, "" if ratio is None else f"{ratio:.2f}"))
    heading = ("", "seconds", "rows/s", "peak MB", "rows", "times the original")
    note = NOTE.format(rounds=settings.rounds, rows=sentences)
    print_table("Noisy variants, no tagger", heading, rows, note)
    if not settings.reference:
        print("Ours alone: for the comparison, --reference DIR names a checkout of iclassifier")


if __name__ == "__main__":
    sys.exit(main())
