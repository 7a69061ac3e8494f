"""Benchmark `loss_curves`: whether the fast path of general distillation learns as the plain one does.

    python -m benchmarks.loss_curves --corpus FILE [--steps 500] [--batch 8] [--svg FILE] [--json FILE]

FILE is a .txt corpus of two documents or more, which are made into sentence pairs. `distillery general`
trains a student of 4 layers, 312 wide, once for each curve: with the teacher in fp32 (plain); by its
defaults, where the teacher runs in bf16 or int8 if the CPU has units for it (fast); from the teacher's own
weights by its defaults. They read the same rows. The plain one with another seed, which begins with other
weights and reads other rows, says what is noise. On a CPU the teacher's precision is all that is not fp32
by default.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from html import escape
from pathlib import Path
from statistics import median

from benchmarks.pregenerate import ROOT, TOKENIZER
from benchmarks.record import print_table, write_record
from distill.charts import Line, line_chart, stroke

RECIPE = ROOT / "recipes" / "general_4x312.yaml"
CURVES: dict[str, list[str]] = {
    "plain": ["--teacher.precision", "fp32"],
    "fast": [],
    "other seed": ["--teacher.precision", "fp32", "--seed", "1"],
    "teacher's weights": ["--student.start", "teacher"],
}
POINTS = 50  # of each curve: a line of metrics is the mean of the steps since the last
STYLE = (
    "<style>text{font:12px sans-serif;fill:#6b7280}"
    ".line0,.line1,.line2,.line3{fill:none;stroke-width:1.5}.line0{stroke:#3b82c4}.line1{stroke:#e0641f}"
    ".line2{stroke:#9ca3af}.line3{stroke:#22a355}.grid{stroke:#9ca3af;stroke-opacity:.35}</style>"
)
NOTE = (
    "{steps} steps of {batch} rows of 128 tokens, each curve by `distillery general`; a point is the mean "
    "of {every} steps.\nDifferences are from `plain`, in percent, along the curve but for its first tenth; "
    "the other seed begins with other weights and reads other rows."
)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    try:
        check(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        curves = measure(Path(options.corpus), options.steps, options.batch, Path(scratch))
    figures = summarise(curves)
    show(figures, curves, options.steps, options.batch)
    if options.svg:
        Path(options.svg).write_text(draw(curves, options.steps, options.batch), encoding="utf-8")
    if options.json:
        losses = {name: [loss for _, loss in curve] for name, curve in curves.items()}
        write_record(Path(options.json), "loss_curves", arguments, figures, losses)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loss_curves", description=__doc__.split("\n")[0] if __doc__ else ""
    )
    parser.add_argument("--corpus", required=True, metavar="FILE", help="a .txt corpus")
    parser.add_argument("--steps", type=int, default=500, help="of each curve")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--svg", metavar="FILE", help="draw the curves there")
    parser.add_argument("--json", metavar="FILE", help="write the record there")
    return parser


def check(options: argparse.Namespace) -> None:
    """Refuse what can't be measured. Raises ValueError."""
    if options.batch < 1:
        raise ValueError("--batch: give 1 or more")
    if options.steps < 10:
        raise ValueError(f"--steps: {options.steps}; a curve has ten points at least, give 10 or more")
    if not Path(options.corpus).is_file():
        raise ValueError(f"--corpus {options.corpus}: no such file")


# ------------------------------------------------------------------------------------- measuring
def measure(corpus: Path, steps: int, batch: int, folder: Path) -> dict[str, list[tuple[float, float]]]:
    """The steps and losses of every curve. Raises RuntimeError where a command fails."""
    files = json.dumps([str(corpus.resolve())], ensure_ascii=False)
    shards = folder / "corpus"
    run("pregenerate", "--corpus.files", files, "--tokenizer", TOKENIZER, "--run", str(shards))
    summary = json.loads((shards / "summary.json").read_text(encoding="utf-8"))
    epochs = (steps + 0.5) * batch / summary["sequences"]  # half a step more, for it is rounded down
    curves = {}
    for name, more in CURVES.items():
        target = folder / _key(name)
        run(
            *("general", "--config", str(RECIPE), "--shards", str(shards / "shards"), "--run", str(target)),
            *("--stage.batch_size", str(batch), "--stage.epochs", repr(epochs), "--processes", "1"),
            *("--record.log_every", str(every(steps)), *more),
        )
        curves[name] = read(target / "metrics.jsonl")
    return curves


def _key(name: str) -> str:
    """A curve's name, as figures and folders have it."""
    return name.replace(" ", "_").replace("'", "")


def run(*command: str) -> None:
    """Run `distillery`; its progress goes to the terminal."""
    code = subprocess.run([sys.executable, "-m", "launcher.cli", *command], cwd=ROOT, stdout=2, check=False)
    if code.returncode:
        raise RuntimeError(f"distillery {command[0]} ended with exit code {code.returncode}")


def every(steps: int) -> int:
    """Steps of a point."""
    return max(1, steps // POINTS)


def read(metrics: Path) -> list[tuple[float, float]]:
    """The steps and losses of a run's metrics."""
    lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return [(line["step"], line["loss"]) for line in lines if line.get("split") == "train"]


# ----------------------------------------------------------------------------------- what it says
def summarise(curves: Mapping[str, list[tuple[float, float]]]) -> dict[str, float]:
    """How far each curve is from the plain one, in percent: median, largest and last; and its last loss."""
    figures: dict[str, float] = {}
    plain = [loss for _, loss in curves["plain"]]
    for name, curve in curves.items():
        key = _key(name)
        figures[f"{key}_last_loss"] = round(curve[-1][1], 4)
        if name != "plain":
            off = [100 * (loss / other - 1) for (_, loss), other in zip(curve, plain, strict=True)]
            sizes = list(map(abs, off[len(off) // 10 :]))
            figures[f"{key}_median_percent"] = round(median(sizes), 3)
            figures[f"{key}_largest_percent"] = round(max(sizes), 3)
            figures[f"{key}_last_percent"] = round(off[-1], 3)
    return figures


def show(
    figures: Mapping[str, float], curves: Mapping[str, list[tuple[float, float]]], steps: int, batch: int
) -> None:
    """Print the figures as a table, a row for each curve."""
    rows = []
    for name in curves:
        keys = ("median", "largest", "last")
        off = (figures.get(f"{_key(name)}_{key}_percent") for key in keys)
        shown = ("" if value is None else f"{value:.2f}" for value in off)
        rows.append((name, f"{figures[f'{_key(name)}_last_loss']:.3f}", *shown))
    note = NOTE.format(steps=steps, batch=batch, every=every(steps))
    print_table("Loss", ("", "at the end", "median %", "largest %", "at the end %"), rows, note)


def draw(curves: Mapping[str, list[tuple[float, float]]], steps: int, batch: int) -> str:
    """The curves as a picture of its own, legible on white and on black."""
    title = f"General distillation, 4 layers of 312, {steps} steps of {batch} rows"
    lines = [Line(name, curve, style) for style, (name, curve) in enumerate(curves.items())]
    figure = line_chart(title, lines, "loss")
    svg = figure[figure.index("<svg") : figure.index("</svg>") + len("</svg>")]
    head, rest = svg.removesuffix("</svg>").split(">", 1)
    legend = "".join(_entry(line) for line in lines)
    return f'{head} xmlns="http://www.w3.org/2000/svg" width="660">{STYLE}{rest}{legend}</svg>\n'


def _entry(line: Line) -> str:
    """A line of the legend."""
    y = 36 + 16 * line.style
    return (
        f'<path {stroke(line.style)} d="M280 {y}h24"/><text x="310" y="{y + 4}">{escape(line.name)}</text>'
    )


if __name__ == "__main__":
    sys.exit(main())
