"""Benchmark `checkpoints`: what saving every N steps costs, written while training goes on or waited for,
and what it costs to check that all ranks take the right rows and hold the same weights.

    python -m benchmarks.checkpoints [--rounds 8] [--steps 10] [--every 50] [--checks 40] [--json FILE]

Windows of a few steps of general distillation take turns: without a checkpoint, with one begun after the
first step and written beside the others, and with one that is waited for. What a checkpoint costs is what
its window takes longer; a writing that outlasts the steps is waited for. Its share is of `--every` steps.

Then single steps take turns, `--checks` of each: without the digest of their rows, with it, and with the
digest of the weights too, which is taken before a checkpoint. Beside what their steps take longer stands
what the digests take by themselves, for that is less than steps differ.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING
from unittest.mock import patch

from benchmarks.record import print_table, take_turns, write_record
from benchmarks.sides import in_own_process, seconds_of, synchronise
from benchmarks.step import Settings, Shape, build_trainer, save_teacher
from launcher.local import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distill.trainer import Trainer

SETTINGS = Settings(
    batch=32,
    length=64,
    teacher=Shape(layers=6, hidden_size=384, heads=12, intermediate_size=1536),
)
SIDES = ("none", "beside", "waited")
CHECKS = ("unchecked", "rows", "weights")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write the record; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="windows of each kind")
    parser.add_argument("--steps", type=int, default=10, help="steps of a window")
    parser.add_argument("--every", type=int, default=50, help="steps from one checkpoint to the next")
    parser.add_argument("--checks", type=int, default=40, help="steps of each kind, checked or not")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if min(options.rounds, options.steps, options.every, options.checks) < 1:
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
        steps = {side: partial(checked_step, trainer, numbers, side) for side in CHECKS}
        take_turns(steps, rounds=1)
        checks = take_turns(steps, options.checks)
        alone = take_turns(digests_alone(trainer), options.checks)
        trainer.engine.close()
    figures = summarise(samples, options.steps, options.every)
    figures |= summarise_checks(checks, alone, options.every)
    samples |= {**checks, **alone}
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


def checked_step(trainer: Trainer, numbers: Iterator[int], side: str) -> float:
    """Seconds of a step, its rows looked at or not, and its weights too."""
    import torch

    from distill.agreement import weights_digest

    nothing = torch.zeros((), dtype=torch.float64, device=trainer.engine.device)
    without = patch("distill.trainer.digest", lambda batch: nothing)
    begin = time.perf_counter()
    with without if side == "unchecked" else nullcontext():
        trainer.train_step(next(numbers))
    if side == "weights":
        weights_digest(trainer.engine.module).item()
    synchronise()
    return time.perf_counter() - begin


def digests_alone(trainer: Trainer) -> dict[str, Callable[[], float]]:
    """What measures the seconds of each digest by itself."""
    from distill.agreement import digest, weights_digest

    batches = [batch.to(trainer.engine.device) for batch in trainer.source.micro_batches(0)]
    return {
        "rows_alone": partial(seconds_of, lambda: [digest(batch) for batch in batches]),
        "weights_alone": partial(seconds_of, lambda: weights_digest(trainer.engine.module).item()),
    }


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


def summarise_checks(
    steps: dict[str, list[float]], alone: dict[str, list[float]], every: int
) -> dict[str, float]:
    """What the checks cost, in seconds and as shares of a step: rows are looked at in each, weights in one
    of `every`. By steps: medians of the differences within a round.
    """
    step = median(steps["unchecked"])

    def longer(side: str, than: str) -> float:
        return median(own - plain for own, plain in zip(steps[side], steps[than], strict=True))

    rows, weights = longer("rows", "unchecked"), longer("weights", "rows")
    rows_alone, weights_alone = (median(alone[f"{side}_alone"]) for side in CHECKS[1:])
    return {
        "rows_check_seconds": round(rows_alone, 6),
        "weights_check_seconds": round(weights_alone, 6),
        "checks_share": round((rows_alone + weights_alone / every) / step, 5),
        "checks_share_by_steps": round((rows + weights / every) / step, 5),
    }


def show(figures: dict[str, float], every: int, size: float) -> None:
    """Print the figures, a row for each way to save."""
    rows = [
        (name, f"{figures[f'{side}_seconds'] * 1000:.0f}", f"{figures[f'{side}_share']:.1%}")
        for side, name in (("beside", "written beside the steps"), ("waited", "waited for"))
    ]
    note = f"A step takes {figures['step_seconds'] * 1000:.0f} ms, a checkpoint {size / 2**20:.0f} MB."
    heading = ("", "ms a checkpoint", f"share of {every} steps")
    print_table("What a checkpoint costs", heading, rows, note)
    print(
        f"To check that ranks agree: {figures['rows_check_seconds'] * 1000:.2f} ms for the rows of a step, "
        f"{figures['weights_check_seconds'] * 1000:.1f} ms for the weights before a checkpoint, "
        f"{figures['checks_share']:.2%} of {every} steps; by what those take longer "
        f"{figures['checks_share_by_steps']:.2%}."
    )


if __name__ == "__main__":
    sys.exit(main())
