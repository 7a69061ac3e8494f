"""Benchmark `word_students`: students of whole words, ours beside the repositories that they come from.

    python -m benchmarks.word_students [--reference DIR] [--json FILE] [--rounds N] [--students NAME ...]

DIR holds checkouts of tacchinotacchi/distil-bilstm, dsindex/iclassifier and HoyTta0/KnowledgeDistillation
under the names after the slash; a student whose original is not there runs alone. Each student learns from
stored logits, as `distillery task` and the original train it, and then reads one text after another. Both
sides get the same number of random words, as many to a text as SST-2's phrases or TNEWS's titles have, in
batches of the original's size. Each lives in a process of its own, and the two take turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, NamedTuple

from benchmarks.record import import_reference, print_table, write_record
from benchmarks.sides import Steps, measure, synchronise
from benchmarks.step import SCHEDULED_STEPS, begin

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from data_pipeline.tasks import Encoded
    from distill.settings import StageConfig
    from distill.trainer import Trainer

Work = Literal["train", "read"]
LABELS = ["negative", "positive"]
WIDTH = 300  # of the word vectors
EXAMPLES = 6400
TURN: dict[Work, int] = {"train": 4, "read": 200}  # steps or texts of a turn: their lengths differ
# Words of SST-2's training phrases, and characters of TNEWS-5's titles, at every twentieth of them.
SST2 = (1, 1, 2, 2, 3, 3, 4, 5, 5, 6, 7, 8, 9, 11, 12, 14, 16, 19, 22, 28, 55)
TNEWS = (3, 10, 12, 14, 15, 17, 17, 19, 20, 21, 22, 23, 25, 26, 27, 28, 29, 30, 31, 33, 98)
UNUSED = (
    "torchtext",
    "torchtext.data",
    "torchtext.vocab",
    "tensorboardX",
    "tqdm",
    "tqdm.autonotebook",
    "utils",
)
NOTE = (
    "Medians of {rounds} turns of {train} steps of training, or of {read} texts read one by one.\n"
    "Ours by the defaults of `distillery task`. Both it and distil-bilstm make batches of like lengths; "
    "iclassifier pads every text to 100 words, KnowledgeDistillation to 50.\n"
    "Peak memory is the largest resident size of the process that trains since it began, loading included."
)


@dataclass(frozen=True)
class Student:
    """A student, and how its original trains it.

    Args:
        repository: The original's.
        batch: Texts of a step.
        padded: Words that the original pads every text to; None pads to the longest of a batch.
        frozen: Whether the word vectors stay as they are.
        logits_weight: Of the squared error of the logits.
        labels_weight: Of the labels' cross-entropy.
        vocabulary: Words.
        lengths: Words of a text, at equal shares of the texts.
    """

    repository: str
    batch: int
    padded: int | None
    frozen: bool
    logits_weight: float = 1.0
    labels_weight: float = 0.0
    vocabulary: int = 14816
    lengths: tuple[int, ...] = SST2


STUDENTS = {
    "bilstm": Student("distil-bilstm", batch=50, padded=None, frozen=False),
    "cnn": Student("iclassifier", batch=128, padded=100, frozen=True),
    "densenet_cnn": Student("iclassifier", batch=128, padded=100, frozen=True),
    "densenet_dsa": Student("iclassifier", batch=128, padded=100, frozen=True),
    "bilstm_max": Student(
        "KnowledgeDistillation",
        batch=64,
        padded=50,
        frozen=False,
        logits_weight=2.0,
        labels_weight=1.0,
        vocabulary=21128,
        lengths=TNEWS,
    ),
}


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        reference: The folder of the originals' checkouts; None measures ours alone.
        rounds: Turns of each side that count; one before them warms up.
        students: Names of STUDENTS.
    """

    reference: Path | None = None
    rounds: int = 7
    students: tuple[str, ...] = tuple(STUDENTS)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    try:
        settings = _settings(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    samples, memory = measure_students(settings)
    figures = summarise(samples, memory)
    show(figures, settings)
    if options.json:
        write_record(Path(options.json), "word_students", arguments, figures, samples)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.word_students", description=__doc__.split("\n")[0] if __doc__ else ""
    )
    parser.add_argument("--reference", metavar="DIR", help="a folder with the originals' checkouts")
    parser.add_argument("--json", metavar="FILE", help="write the record here")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="turns of each side that count")
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS), help="which")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    if options.rounds < 1:
        raise ValueError("--rounds: give 1 or more")
    reference = None if options.reference is None else Path(options.reference).resolve()
    settings = Settings(reference, options.rounds, tuple(options.students))
    if reference and not any(_original_folder(settings, name) for name in settings.students):
        wanted = ", ".join(sorted({STUDENTS[name].repository for name in settings.students}))
        raise ValueError(f"--reference {options.reference}: none of these is there: {wanted}")
    return settings


def _original_folder(settings: Settings, name: str) -> Path | None:
    """Where a student's original is, None where it is not at hand."""
    if settings.reference is None:
        return None
    folder = settings.reference / STUDENTS[name].repository
    return folder if folder.is_dir() else None


def measure_students(settings: Settings) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of a step of training and of reading a text, and the peak of memory, by figure."""
    samples: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    for name in settings.students:
        for work in TURN:
            with tempfile.TemporaryDirectory() as scratch:
                sides: dict[str, Steps] = {"ours": partial(ours, name, work, Path(scratch))}
                if folder := _original_folder(settings, name):
                    sides = {"original": partial(original, name, work, folder, Path(scratch)), **sides}
                seconds, found = measure(sides, settings.rounds)
            for side in sides:
                turns = seconds[f"{side}_seconds"]
                samples[f"{side}_{name}_{work}_seconds"] = [value / TURN[work] for value in turns]
                if work == "train":
                    memory[f"{side}_{name}_peak_mb"] = found[f"{side}_peak_mb"]
    return samples, memory


# --------------------------------------------------------------------------------- the same input
def examples(name: str) -> Encoded:
    """Texts of random words with random labels and logits of a teacher."""
    import numpy as np

    from data_pipeline.tasks import Encoded

    student, rng = STUDENTS[name], np.random.default_rng(0)
    places = rng.random(EXAMPLES) * (len(student.lengths) - 1)
    lengths = np.interp(places, range(len(student.lengths)), student.lengths).round().astype(int)
    ids = [rng.integers(5, student.vocabulary, length)[: student.padded] for length in lengths]
    logits = rng.normal(0, 2, (EXAMPLES, len(LABELS))).astype(np.float32)
    return Encoded(ids, [np.zeros_like(row) for row in ids], logits.argmax(axis=1), 0, teacher=logits)


def singles() -> Iterator[np.ndarray]:
    """The index of one text after another."""
    import numpy as np

    return (np.array([number % EXAMPLES]) for number in count())


def batches(name: str, data: Encoded) -> Iterator[np.ndarray]:
    """Indices of a batch of like lengths after another, or of random ones where all get the same width."""
    import numpy as np

    from data_pipeline.tasks import bucketed_steps

    student = STUDENTS[name]
    for epoch in count():
        if student.padded:
            order = np.random.default_rng(epoch).permutation(len(data))
            yield from order[: len(order) // student.batch * student.batch].reshape(-1, student.batch)
        else:
            yield from bucketed_steps(data.lengths, student.batch, 0, epoch)


# ----------------------------------------------------------------------------------- the originals
class Original(NamedTuple):
    """What an original does with ids (batch, length), the teacher's logits and the labels."""

    train: Callable[[Tensor, Tensor, Tensor], object]
    read: Callable[[Tensor], object]


def original(name: str, work: Work, folder: Path, scratch: Path) -> Iterator[None]:
    """Turns of an original: its own model, trained as its own loop does."""
    import torch

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, student = examples(name), STUDENTS[name]
    side = ORIGINALS[student.repository](name, folder, scratch, device)
    order = batches(name, data) if work == "train" else singles()
    yield

    while True:
        for index in islice(order, TURN[work]):
            ids = torch.from_numpy(data.padded(index, student.padded)["ids"]).to(device)
            if work == "read":
                side.read(ids)
            else:
                assert data.teacher is not None
                targets, labels = (
                    torch.from_numpy(data.teacher[index]),
                    torch.from_numpy(data.labels[index]),
                )
                side.train(ids, targets.to(device), labels.to(device))
        synchronise()
        yield


def _distil_bilstm(_: str, folder: Path, __: Path, device: torch.device) -> Original:
    """Its trainer's own step: Adam, a rate in triangles, gradients clipped to 1."""
    import torch

    script, trainers = import_reference(folder, ("train_bilstm", "trainer"), UNUSED)
    vocabulary = STUDENTS["bilstm"].vocabulary
    model = script.BiLSTMClassifier(2, vocabulary, WIDTH, 300, 400, dropout_rate=0.15).to(device)
    trainer = trainers.LSTMTrainer(model, device, loss="mse", lr=1e-3, val_interval=-1, checkpt_interval=-1)
    trainer.scheduler = torch.optim.lr_scheduler.CyclicLR(
        trainer.optimizer, 1e-5, 1e-3, step_size_up=50, step_size_down=SCHEDULED_STEPS, cycle_momentum=False
    )
    trainer.training_step = trainer.global_step = 0
    trainer.tb_writer = SimpleNamespace(add_scalar=lambda *_: None)  # what it logs is not measured

    def lengths(ids: Tensor) -> Tensor:
        return (ids != 0).sum(dim=1)

    def train(ids: Tensor, targets: Tensor, _: Tensor) -> None:
        trainer.train_step(SimpleNamespace(text=(ids.T.contiguous(), lengths(ids)), label=targets))

    @torch.no_grad()
    def read(ids: Tensor) -> object:
        return model.eval()(ids.T.contiguous(), lengths(ids))[0]

    return Original(train, read)


def _iclassifier(name: str, folder: Path, scratch: Path, device: torch.device) -> Original:
    """AdamW without clipping on a sum of squared errors, its loss read every step."""
    import numpy
    import torch

    vectors = numpy.random.default_rng(0).normal(0, 0.3, (STUDENTS[name].vocabulary, WIDTH))
    numpy.save(scratch / "vectors.npy", vectors.astype("float32"))
    (models,) = import_reference(folder, ["model"], ())
    file, kind = {
        "cnn": ("config-glove-cnn.json", "TextGloveCNN"),
        "densenet_cnn": ("config-densenet-cnn.json", "TextGloveDensenetCNN"),
        "densenet_dsa": ("config-densenet-dsa.json", "TextGloveDensenetDSA"),
    }[name]
    config = json.loads((folder / "configs" / file).read_text(encoding="utf-8"))
    config["args"] = SimpleNamespace(device=device, seed=0, enable_qat=False, use_isomax=False)
    model = getattr(models, kind)(config, str(scratch / "vectors.npy"), len(LABELS)).to(device)
    criterion = torch.nn.MSELoss(reduction="sum")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-8)

    def train(ids: Tensor, targets: Tensor, _: Tensor) -> None:
        model.train()
        loss = criterion(model(ids), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return Original(train, torch.no_grad()(lambda ids: model.eval()(ids)))


def _knowledge_distillation(name: str, folder: Path, _: Path, device: torch.device) -> Original:
    """Plain SGD on cross-entropy and twice the squared error."""
    import torch

    (models,) = import_reference(folder, ["models.biLSTM"], ())
    model = models.biLSTM(SimpleNamespace(num_classes=len(LABELS))).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    student = STUDENTS[name]

    def train(ids: Tensor, targets: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        logits = model.train()(ids)
        error = torch.nn.functional.mse_loss(logits, targets)
        entropy = torch.nn.functional.cross_entropy(logits, labels)
        (student.labels_weight * entropy + student.logits_weight * error).backward()
        optimizer.step()

    return Original(train, torch.no_grad()(lambda ids: model.eval()(ids)))


ORIGINALS: dict[str, Callable[[str, Path, Path, torch.device], Original]] = {
    "distil-bilstm": _distil_bilstm,
    "iclassifier": _iclassifier,
    "KnowledgeDistillation": _knowledge_distillation,
}


# ------------------------------------------------------------------------------------------- ours
def ours(name: str, work: Work, folder: Path) -> Iterator[None]:
    """Turns of our trainer, made of what `distillery task` is made of; or of the trained model."""
    import torch

    trainer, data = build_trainer(name, folder)
    model, device = trainer.objective.student, trainer.engine.device
    trainer.engine.train()
    steps, order = count(), singles()
    yield

    while True:
        if work == "train":
            for step in islice(steps, TURN[work]):
                trainer.train_step(step)
        else:
            model.eval()
            for index in islice(order, TURN[work]):
                parts = data.padded(index)
                with torch.no_grad():
                    model(*(torch.from_numpy(parts[part]).to(device) for part in ("ids", "mask")))
        synchronise()
        yield


def build_trainer(name: str, folder: Path) -> tuple[Trainer, Encoded]:
    """A trainer of a student by the defaults of `distillery task`, and its data."""
    from distill.encoders import StoredTeacher, set_labels
    from distill.objective import Objective
    from distill.settings import EngineConfig, RecordConfig
    from distill.sources import TaskSource
    from distill.trainer import Trainer
    from distill.word_students import WordModelConfig, WordModelForSequenceClassification

    begin()
    student, data, stage = STUDENTS[name], examples(name), stage_of(name)
    shape = WordModelConfig(name, student.vocabulary, WIDTH, frozen=student.frozen)
    set_labels(shape, LABELS, "classification")
    model = WordModelForSequenceClassification(shape)
    model.freeze()
    trainer = Trainer(
        name="prediction",
        objective=Objective(model, stage.objective, [], 0),
        teacher=StoredTeacher("fp32"),
        source=TaskSource(data, student.batch, student.batch, seed=0),
        stage=stage,
        engine_config=EngineConfig(),
        record=RecordConfig(),
        seed=0,
        folder=folder,
    )
    return trainer, data


def stage_of(name: str) -> StageConfig:
    """A student's training on stored logits, by the defaults of `distillery task`."""
    from distill.settings import TaskDistillConfig, TeacherConfig

    stage = TaskDistillConfig(teacher=TeacherConfig(""), task=None).prediction  # type: ignore[arg-type]
    stage.batch_size, stage.objective.logits = STUDENTS[name].batch, 0.0
    stage.objective.logits_mse = STUDENTS[name].logits_weight
    stage.objective.labels = STUDENTS[name].labels_weight
    return stage


# ---------------------------------------------------------------------------------- what it says
def summarise(samples: dict[str, list[float]], memory: dict[str, float]) -> dict[str, float]:
    """Texts per second of training and milliseconds of reading; ratios where the original was measured."""
    figures: dict[str, float] = {}
    for key, seconds in samples.items():
        side, name, work = _parts(key)
        value = STUDENTS[name].batch / median(seconds) if work == "train" else 1000 * median(seconds)
        figures[f"{side}_{name}_{'texts_per_s' if work == 'train' else 'ms'}"] = round(value, 3)
        if side == "ours" and (theirs := samples.get(f"original_{name}_{work}_seconds")):
            figures[f"{name}_{work}_speedup"] = round(median(theirs) / median(seconds), 3)
    return figures | {name: round(mb, 1) for name, mb in memory.items()}


def _parts(key: str) -> tuple[str, str, str]:
    """Side, student and work of `{side}_{student}_{work}_seconds`."""
    side, _, rest = key.removesuffix("_seconds").partition("_")
    name, _, work = rest.rpartition("_")
    return side, name, work


def show(figures: dict[str, float], settings: Settings) -> None:
    """Print the figures as a table, a row for each side of each student."""
    rows = []
    for name in settings.students:
        for side in ("original", "ours"):
            if f"{side}_{name}_ms" not in figures:
                continue
            ratios = [figures.get(f"{name}_{work}_speedup") if side == "ours" else None for work in TURN]
            train, read = ("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
            speed, wait, mb = (figures[f"{side}_{name}_{key}"] for key in ("texts_per_s", "ms", "peak_mb"))
            label = f"{name}, {side if side == 'ours' else STUDENTS[name].repository}"
            rows.append((label, f"{speed:,.0f}", train, f"{wait:.2f}", read, f"{mb:,.0f}"))
    heading = ("", "training, texts/s", "times", "one text, ms", "times", "peak MB")
    print_table("Students of whole words", heading, rows, NOTE.format(rounds=settings.rounds, **TURN))
    if not any(f"original_{name}_ms" in figures for name in settings.students):
        print("Ours alone: for the comparison, --reference DIR names a folder of the originals' checkouts")


if __name__ == "__main__":
    sys.exit(main())
