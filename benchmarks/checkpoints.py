"""Benchmark `checkpoints`: what saving every N steps costs, written while training goes on or waited for.

    python -m benchmarks.checkpoints [--rounds 8] [--steps 10] [--every 50] [--json FILE]

Windows of a few steps of general distillation take turns: without a checkpoint, with one begun after the
first step and written beside the others, and with one that is waited for. What a checkpoint costs is what
its window takes longer; a writing that outlasts the steps is waited for. Its share is of `--every` steps.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.record import print_table, take_turns, write_record
from benchmarks.sides import in_own_process
from benchmarks.step import Settings, Shape, build_trainer, save_teacher
from launcher.local import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distill.trainer import Trainer

SETTINGS = Settings(
    batch=32,
    length=64,
    teacher=Shape(layers=6, hidden_size=384, heads=12, intermediate_size=1536),
)
SIDES = ("none", "beside", "waited")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write the record; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="windows of each kind")
    parser.add_argument("--steps", type=int, default=10, help="steps of a window")
    parser.add_argument("--every", type=int, default=50, help="steps from one checkpoint to the next")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if min(options.rounds, options.steps, options.every) < 1:
        parser.error("give 1 or more of each")
    os.environ.update(environment(1, dict(os.environ)))  # as `distillery` starts its processes
    in_own_process(run, options, arguments)
    return 0


def run(options: argparse.Namespace, arguments: list[str]) -> None:
    """The measurement, in the environment of a job."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_teacher(folder / "teacher", SETTINGS)
        trainer = build_trainer(SETTINGS, folder)
        trainer.engine.train()
        numbers = count()
        sides = {side: partial(window, trainer, numbers, side, options.steps) for side in SIDES}
        take_turns(sides, rounds=1)  # warms up
        samples = take_turns(sides, options.rounds)
        size = sum(
            file.stat().st_size for file in folder.glob("checkpoints/*/step-*/**/*") if file.is_file()
        )
        trainer.engine.close()
    figures = summarise(samples, options.steps, options.every)
    show(figures, options.every, size / trainer.record.keep)
    if options.json:
        write_record(options.json, "checkpoints", arguments, figures, samples)


def window(trainer: Trainer, numbers: Iterator[int], side: str, steps: int) -> float:
    """Seconds of so many steps, a checkpoint's writing among them."""
    begin = time.perf_counter()
    for number in range(steps):
        done = next(numbers)
        trainer.train_step(done)
        if number == 0 and side != "none":
            trainer.checkpoints.save(trainer.engine, done + 1, {"best": {}}, wait=side == "waited")
    trainer.checkpoints.finish(trainer.engine.device)
    return time.perf_counter() - begin


def summarise(samples: dict[str, list[float]], steps: int, every: int) -> dict[str, float]:
    """Seconds of a step and of a checkpoint's cost, and the cost's share of `every` steps.

    Costs are medians over rounds: a window beside the one without a checkpoint of the same round.
    """
    step = median(samples["none"]) / steps
    figures = {"step_seconds": round(step, 4)}
    for side in SIDES[1:]:
        pairs = zip(samples[side], samples["none"], strict=True)
        cost = median(own - plain for own, plain in pairs)
        figures[f"{side}_seconds"] = round(cost, 4)
        figures[f"{side}_share"] = round(cost / (every * step), 4)
    return figures


def show(figures: dict[str, float], every: int, size: float) -> None:
    """Print the figures, a row for each way to save."""
    rows = [
        (name, f"{figures[f'{side}_seconds'] * 1000:.0f}", f"{figures[f'{side}_share']:.1%}")
        for side, name in (("beside", "written beside the steps"), ("waited", "waited for"))
    ]
    note = f"A step takes {figures['step_seconds'] * 1000:.0f} ms, a checkpoint {size / 2**20:.0f} MB."
    heading = ("", "ms a checkpoint", f"share of {every} steps")
    print_table("What a checkpoint costs", heading, rows, note)


if __name__ == "__main__":
    sys.exit(main())
