"""The task's half of benchmark `step`: the two steps of task distillation on sentences as long as SST-2's.

The original pads every sentence to 64 tokens, its own setting for SST-2, and runs the teacher and all
that attention losses need in both steps. Ours pads a batch to its longest sentence, batches being of
like lengths. `task_speedup` and `textbrewer_task_speedup` compare the time of one intermediate and one
prediction step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.record import print_table
from benchmarks.sides import Steps, in_own_process, measure, synchronise
from benchmarks.step import (
    SCHEDULED_STEPS,
    Settings,
    begin,
    original_code,
    original_groups,
    original_losses,
    save_teacher,
)

if TYPE_CHECKING:
    from torch import Tensor

    from data_pipeline.tasks import Encoded

STAGES = ("intermediate", "prediction")
LABELS = ["negative", "positive"]
PADDED = 64  # the original's max_seq_length for SST-2
# Tokens of SST-2's training sentences ([CLS] and [SEP] counted) at every twentieth of them.
QUANTILES = (3, 4, 4, 5, 6, 6, 7, 8, 8, 9, 10, 11, 13, 14, 16, 18, 20, 23, 27, 33, 63)
EXAMPLES = 3200
TURN = 8  # steps of a turn where their lengths differ: all but the original's
# The sides that ours is compared with: their names in a sentence, and the figure of ours to theirs.
OTHERS = {
    "original": ("the original", "task_speedup"),
    "textbrewer": ("TextBrewer", "textbrewer_task_speedup"),
}
NOTE = (
    "Medians of {rounds} turns; a turn of ours is the mean of {turn} steps, since its batches differ in "
    "length.\nTeacher and student as above, with two classes; all sides run the teacher in each step."
)


def measure_task(settings: Settings) -> dict[str, list[float]]:
    """Seconds of the steps of both stages, by `{side}_{stage}_seconds`."""
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        in_own_process(save_teacher, folder / "teacher", settings, "BertForSequenceClassification")
        for stage in STAGES:
            seconds, _ = measure(sides_of(settings, stage, folder), settings.rounds)
            for name, values in seconds.items():
                side = name.removesuffix("_seconds")
                steps = 1 if side == "original" else TURN
                samples[f"{side}_{stage}_seconds"] = [value / steps for value in values]
    return samples


def sides_of(settings: Settings, stage: str, folder: Path) -> dict[str, Steps]:
    """The sides of a stage that are measured; ours last, as in general distillation."""
    from benchmarks import step_textbrewer  # it is made of parts of this module

    sides: dict[str, Steps] = {}
    if settings.reference:
        sides["original"] = partial(original, settings, stage)
    if settings.textbrewer:
        sides["textbrewer"] = partial(step_textbrewer.task, settings, stage, folder)
    sides["ours"] = partial(ours, settings, stage, folder)
    return sides


def summarise(samples: dict[str, list[float]], batch: int) -> dict[str, float]:
    """The figures; ratios only to the sides that were measured too."""
    figures: dict[str, float] = {}
    medians = {name: median(values) for name, values in samples.items()}
    for other, (_, speedup) in OTHERS.items():
        if f"{other}_prediction_seconds" in samples:
            totals = [
                sum(medians[f"{side}_{stage}_seconds"] for stage in STAGES) for side in (other, "ours")
            ]
            figures[speedup] = round(totals[0] / totals[1], 3)
    for name, seconds in medians.items():
        figures[f"{name.removesuffix('_seconds')}_sequences_per_s"] = round(batch / seconds, 3)
    return figures


def show(figures: dict[str, float], settings: Settings) -> None:
    """Print the figures as a table, a row for each side."""
    from benchmarks import step_textbrewer

    names = [f"{stage}_sequences_per_s" for stage in STAGES]
    sides = [side for side in (*OTHERS, "ours") if f"{side}_{names[0]}" in figures]
    rows = [(side, *(f"{figures[f'{side}_{name}']:,.1f}" for name in names)) for side in sides]
    note = f"{NOTE}\n{step_textbrewer.NOTE_OF_TASK}" if "textbrewer" in sides else NOTE
    print_table(
        f"One step of task distillation, batches of {settings.batch}, lengths as SST-2's",
        ("", "intermediate, sequences/s", "prediction, sequences/s"),
        rows,
        note.format(rounds=settings.rounds, turn=TURN),
    )
    for called, speedup in OTHERS.values():
        if speedup in figures:
            print(f"Ours: {figures[speedup]:.2f} times {called}'s speed over both stages")


def examples(settings: Settings) -> Encoded:
    """Sentences of random tokens, as long as SST-2's."""
    import numpy as np

    from data_pipeline.tasks import Encoded

    rng = np.random.default_rng(0)
    places = rng.random(EXAMPLES) * (len(QUANTILES) - 1)
    lengths = np.interp(places, range(len(QUANTILES)), QUANTILES).round().astype(int)
    ids = [rng.integers(1, settings.vocabulary, length) for length in lengths]
    labels = rng.integers(0, len(LABELS), EXAMPLES)
    return Encoded(ids, [np.zeros_like(row) for row in ids], labels, 0)


# ----------------------------------------------------------------------------------- the original
def original(settings: Settings, stage: str) -> Iterator[None]:
    """Steps of the loop in the original's task_distill.py, made of its own model and optimizer."""
    import torch

    modeling, optimization, device = original_code(settings)
    teacher, student = (
        modeling.TinyBertForSequenceClassification(
            modeling.BertConfig(settings.vocabulary, **shape.named()),
            len(LABELS),
            settings.teacher.hidden_size,
        ).to(device)
        for shape in (settings.teacher, settings.student)
    )
    student.train()  # the teacher is never put into eval mode
    schedule = "warmup_linear" if stage == "prediction" else "none"
    optimizer = optimization.BertAdam(
        original_groups(student), schedule=schedule, lr=5e-5, warmup=0.1, t_total=SCHEDULED_STEPS
    )
    data = examples(settings)
    yield

    for step in count():
        ids, segments, mask = (part.to(device) for part in _padded(data, step, settings.batch))
        logits, own_scores, own_states = student(ids, segments, mask, is_student=True)
        with torch.no_grad():
            targets, scores, states = teacher(ids, segments, mask)
        if stage == "intermediate":
            loss = sum(original_losses(own_scores, own_states, scores, states))
        else:
            own = torch.nn.functional.log_softmax(logits, dim=-1)
            loss = -(torch.nn.functional.softmax(targets, dim=-1) * own).mean()
        loss.backward()
        loss.item()  # for its running means
        optimizer.step()
        optimizer.zero_grad()
        synchronise()
        yield


def _padded(data: Encoded, step: int, batch: int) -> tuple[Any, Any, Any]:
    """A random batch of the original's: ids, segments, mask, (batch, 64) each."""
    import torch

    ids = torch.zeros((batch, PADDED), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sentence in enumerate(picked(data, step, batch)):
        ids[row, : len(sentence)], mask[row, : len(sentence)] = sentence, 1
    return ids, torch.zeros_like(ids), mask


def picked(data: Encoded, step: int, batch: int) -> list[Tensor]:
    """The sentences of a random batch, the original's and TextBrewer's."""
    import numpy as np
    import torch

    numbers = np.random.default_rng(step).choice(len(data), batch, replace=False)
    return [torch.from_numpy(data.ids[number]) for number in numbers]


# ------------------------------------------------------------------------------------------- ours
def ours(settings: Settings, stage: str, folder: Path) -> Iterator[None]:
    """Turns of our trainer, made of what `distillery task` is made of, by its defaults."""
    from distill.encoders import Teacher, build_classifier, read_config, student_shape
    from distill.layer_map import layer_map
    from distill.objective import Objective
    from distill.settings import StudentConfig, TaskDistillConfig, TeacherConfig
    from distill.sources import TaskSource
    from distill.trainer import Trainer

    device = begin()
    precision: Any = settings.teacher_precision
    config = TaskDistillConfig(
        teacher=TeacherConfig(str(folder / "teacher"), precision=precision),
        task=None,  # type: ignore[arg-type]  # `examples` take its place
        student=StudentConfig(**asdict(settings.student), dropout=settings.student_dropout),
    )
    settings_of_stage = getattr(config, stage)
    settings_of_stage.batch_size = settings.batch
    base = read_config(config.teacher.path)
    student = build_classifier(None, student_shape(config.student, base), LABELS)
    objective_config = settings_of_stage.objective
    layers = layer_map(objective_config.layer_map, config.student.layers, base.num_hidden_layers)
    trainer = Trainer(
        name=stage,
        objective=Objective(student, objective_config, layers, base.hidden_size),
        teacher=Teacher(config.teacher, device),
        source=TaskSource(examples(settings), settings.batch, settings.batch, config.seed),
        stage=settings_of_stage,
        engine_config=config.engine,
        record=config.record,
        seed=config.seed,
        folder=folder,
    )
    trainer.engine.train()
    yield

    for step in count():
        for number in range(step * TURN, (step + 1) * TURN):
            trainer.train_step(number)
        synchronise()
        yield
