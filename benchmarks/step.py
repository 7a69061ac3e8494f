"""Benchmark `step`: steps of general and of task distillation: ours, the original TinyBERT's, TextBrewer's.

    python -m benchmarks.step --reference DIR [--json FILE] [--rounds N] [--batch 32] [--length 128]

DIR is a checkout of huawei-noah/Pretrained-Language-Model or its folder TinyBERT; without it the
original is left out, as TextBrewer is where it is not installed (benchmarks/step_textbrewer.py). All
sides train the same shape on the same ids from random weights: a BERT-base teacher (12 layers, 768
wide) and a student of 4 layers, 312 wide. Each side lives in a process of its own, so that its peak
memory is its own, and they take turns, a step each. The task's sequences are as long as SST-2's
(benchmarks/step_task.py).
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.record import import_reference, print_table, reference_folder, write_record
from benchmarks.sides import Steps, in_own_process, measure, synchronise

if TYPE_CHECKING:  # torch is for the children: the parent only waits and must weigh nothing
    import torch
    from torch import Tensor

    from distill.encoders import Batch
    from distill.objective import Objective
    from distill.settings import GeneralConfig
    from distill.trainer import Trainer

SCHEDULED_STEPS = 100_000  # of the learning-rate schedule; no run gets so far
UNUSED = ("boto3", "botocore", "botocore.exceptions", "requests", "tqdm")
# The sides that ours is compared with: their names in a sentence, and the figures of ours to theirs,
# of speed and of peak memory.
OTHERS = {
    "original": ("the original", "general_speedup", "general_memory_ratio"),
    "textbrewer": ("TextBrewer", "textbrewer_speedup", "textbrewer_memory_ratio"),
}
NOTE = (
    "A step is the student's and teacher's forward, the loss, backward and the update; "
    "medians of {rounds} steps each, in turns.\n"
    "The original as its code runs: dropout 0.1 live in student and teacher, the teacher's graph built "
    "and thrown away, fp32, BertAdam.\n"
    "Ours by its defaults: teacher in eval mode ({precision}), student dropout {dropout:g}, AdamW.\n"
    "Peak memory is the process's largest resident size since it began, loading included; growth is "
    "what it has above the size before its first step."
)


@dataclass(frozen=True)
class Shape:
    """A BERT's shape."""

    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int

    def named(self) -> dict[str, int]:
        """It in the words of BERT's configuration, the original's and that of transformers."""
        return {
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate_size,
        }


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        reference: The original's folder TinyBERT; None leaves it out.
        textbrewer: Whether TextBrewer is measured too.
        rounds: Steps of each side that count; one before them warms up.
        batch: Sequences of a step.
        length: Tokens of a sequence; none is padding.
        teacher_precision: Of our teacher: auto, fp32, bf16 or int8.
        student_dropout: Of our student.
        vocabulary: Tokens that both models know.
        teacher: The teacher's shape.
        student: The student's shape.
    """

    reference: Path | None = None
    textbrewer: bool = False
    rounds: int = 7
    batch: int = 32
    length: int = 128
    teacher_precision: str = "auto"
    student_dropout: float = 0.0
    vocabulary: int = 30522
    teacher: Shape = field(default_factory=lambda: Shape(12, 768, 12, 3072))
    student: Shape = field(default_factory=lambda: Shape(4, 312, 12, 1200))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    try:
        settings = _settings(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    from benchmarks import step_task, step_textbrewer  # they are made of parts of this module

    left_out = step_textbrewer.left_out()
    settings = replace(settings, textbrewer=not left_out)
    samples, memory = measure_general(settings)
    figures = summarise(samples, memory, settings.batch)
    show(figures, settings)
    task_samples = step_task.measure_task(settings)
    task_figures = step_task.summarise(task_samples, settings.batch)
    step_task.show(task_figures, settings)
    if left_out:
        print(left_out)
    if options.json:
        figures, samples = figures | task_figures, samples | task_samples
        packages = ("textbrewer",) if settings.textbrewer else ()
        write_record(Path(options.json), "step", arguments, figures, samples, packages)
    return 0


def measure_general(settings: Settings) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of the steps of general distillation, and memory in MB by figure."""
    with tempfile.TemporaryDirectory() as scratch:
        in_own_process(save_teacher, Path(scratch) / "teacher", settings)
        return measure(sides_of(settings, Path(scratch)), settings.rounds)


def sides_of(settings: Settings, folder: Path) -> dict[str, Steps]:
    """The sides that are measured; ours last, for those after it would run in its environment."""
    from benchmarks import step_textbrewer

    sides: dict[str, Steps] = {}
    if settings.reference:
        sides["original"] = partial(original, settings)
    if settings.textbrewer:
        sides["textbrewer"] = partial(step_textbrewer.general, settings, folder)
    sides["ours"] = partial(ours, settings, folder)
    return sides


def _parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.split("\n")[0])
    parser.add_argument("--reference", metavar="DIR", help="the original's checkout or its TinyBERT folder")
    parser.add_argument("--json", metavar="FILE", help="write the record here")
    parser.add_argument("--rounds", type=_positive, default=default.rounds, help="steps of each side")
    parser.add_argument("--batch", type=_positive, default=default.batch, help="sequences of a step")
    parser.add_argument("--length", type=_positive, default=default.length, help="tokens of a sequence")
    parser.add_argument(
        "--teacher-precision",
        choices=("auto", "fp32", "bf16", "int8"),
        default=default.teacher_precision,
        help="of our teacher",
    )
    parser.add_argument(
        "--student-dropout",
        type=float,
        default=default.student_dropout,
        metavar="P",
        help="of our student (the original's is 0.1)",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        reference=reference_folder(options.reference, "transformer/modeling.py"),
        rounds=options.rounds,
        batch=options.batch,
        length=options.length,
        teacher_precision=options.teacher_precision,
        student_dropout=options.student_dropout,
    )


# --------------------------------------------------------------------------------- the same input
def tokens(step: int, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and segments of a step, (batch, length) each: the same for all sides."""
    import torch

    generator = torch.Generator().manual_seed(step)
    shape = (settings.batch, settings.length)
    ids = torch.randint(settings.vocabulary, shape, generator=generator)
    segments = (torch.arange(settings.length) >= settings.length // 2).long().expand(shape)
    return ids, torch.ones_like(ids), segments.contiguous()


# ----------------------------------------------------------------------------------- the original
def original(settings: Settings) -> Iterator[None]:
    """Steps of the loop in the original's general_distill.py, made of its own model and optimizer.

    What makes it slow and large stays: attention maps and their graph for the frozen teacher too,
    and names that outlive the step: the pooled output among `outputs` keeps the teacher's whole
    graph until the next step has built another.
    """
    modeling, optimization, device = original_code(settings)
    teacher_config, student_config = (
        modeling.BertConfig(settings.vocabulary, **shape.named())
        for shape in (settings.teacher, settings.student)
    )
    teacher = modeling.BertModel(teacher_config)
    student = modeling.TinyBertForPreTraining(student_config, fit_size=settings.teacher.hidden_size)
    teacher.to(device)  # never put into eval mode
    student.to(device).train()
    optimizer = optimization.BertAdam(
        original_groups(student), lr=5e-5, warmup=0.1, t_total=SCHEDULED_STEPS
    )
    yield

    for step in count():
        ids, mask, segments = (tensor.to(device) for tensor in tokens(step, settings))
        own_scores, own_states = student(ids, segments, mask)
        outputs = teacher(ids, segments, mask)  # hidden states, attention scores, pooled
        states = [state.detach() for state in outputs[0]]
        scores = [score.detach() for score in outputs[1]]
        attention, hidden = original_losses(own_scores, own_states, scores, states)
        loss = attention + hidden
        loss.backward()
        for value in (attention, hidden, loss):  # for its running means
            value.item()
        optimizer.step()
        optimizer.zero_grad()
        synchronise()
        yield


def original_code(settings: Settings) -> tuple[ModuleType, ModuleType, torch.device]:
    """The original's modules of models and of the optimizer, and the device; torch is seeded."""
    import torch

    assert settings.reference
    names = ("transformer.modeling", "transformer.optimization")
    modeling, optimization = import_reference(settings.reference, names, UNUSED)
    torch.manual_seed(0)
    return modeling, optimization, torch.device("cuda" if torch.cuda.is_available() else "cpu")


def original_losses(
    own_scores: list[Tensor], own_states: list[Tensor], scores: list[Tensor], states: list[Tensor]
) -> tuple[Any, Any]:
    """The losses of attention scores and of hidden states, as both of the original's loops have them."""
    import torch

    block = len(scores) // len(own_scores)
    mse = torch.nn.MSELoss()
    attention: Any = 0.0
    hidden: Any = 0.0
    for own, target in zip(own_scores, scores[block - 1 :: block], strict=True):
        own = torch.where(own <= -1e2, torch.zeros_like(own), own)
        target = torch.where(target <= -1e2, torch.zeros_like(target), target)
        attention += mse(own, target)
    for own, target in zip(own_states, states[::block], strict=True):
        hidden += mse(own, target)
    return attention, hidden


def original_groups(student: Any) -> list[dict[str, Any]]:
    """Weight decay 0.01, none on biases and layer norms."""
    groups: dict[float, list[Any]] = {0.01: [], 0.0: []}
    for name, parameter in student.named_parameters():
        plain = name.endswith("bias") or "LayerNorm" in name
        groups[0.0 if plain else 0.01].append(parameter)
    return [{"params": part, "weight_decay": decay} for decay, part in groups.items()]


# ------------------------------------------------------------------------------------------ ours
def ours(settings: Settings, folder: Path) -> Iterator[None]:
    """Steps of our trainer, made of what `distillery general` is made of."""
    trainer = build_trainer(settings, folder)
    trainer.engine.train()
    yield

    for step in count():
        trainer.train_step(step)
        synchronise()
        yield


class SyntheticSource:
    """The same ids as the original's."""

    steps_per_epoch = SCHEDULED_STEPS

    def __init__(self, settings: Settings):
        self.settings = settings
        self.identity: dict[str, str] = {}

    def micro_batches(self, step: int) -> list[Batch]:
        """One micro-batch, the whole step."""
        from distill.encoders import Batch

        return [Batch(*tokens(step, self.settings))]


def build_trainer(settings: Settings, folder: Path) -> Trainer:
    """A trainer by the defaults of `distillery general`; the teacher lies in `folder`/teacher."""
    from distill.encoders import Teacher
    from distill.trainer import Trainer

    device = begin()
    config = _general_config(settings, folder / "teacher")
    objective = _objective(config)
    return Trainer(
        name="general",
        objective=objective,
        teacher=Teacher(config.teacher, device, layers=max(layer for _, layer in objective.layers)),
        source=SyntheticSource(settings),
        stage=config.stage,
        engine_config=config.engine,
        record=config.record,
        seed=config.seed,
        folder=folder,
    )


def _general_config(settings: Settings, teacher: Path) -> GeneralConfig:
    from distill.settings import GeneralConfig, StudentConfig, TeacherConfig

    precision: Any = settings.teacher_precision
    config = GeneralConfig(
        teacher=TeacherConfig(str(teacher), precision=precision),
        shards="",  # SyntheticSource takes their place
        student=StudentConfig(**asdict(settings.student), dropout=settings.student_dropout),
    )
    config.stage.batch_size = settings.batch
    return config


def _objective(config: GeneralConfig) -> Objective:
    from distill.encoders import build_backbone, read_config
    from distill.layer_map import layer_map
    from distill.objective import Objective

    student = build_backbone(config.student, config.teacher.path)
    teacher = read_config(config.teacher.path)
    spec = config.stage.objective.layer_map
    layers = layer_map(spec, config.student.layers, teacher.num_hidden_layers)
    return Objective(student, config.stage.objective, layers, teacher.hidden_size)


def begin() -> torch.device:
    """Make this process a group of one, quiet and seeded; returns its device."""
    import torch

    from distill.engine import start_processes

    quiet()
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "0"}
    os.environ.update(group, MASTER_ADDR="127.0.0.1")  # on a port that the system chooses
    device = start_processes()
    torch.manual_seed(0)
    return device


def quiet() -> None:
    """Leave the terminal to the table."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def save_teacher(folder: Path, settings: Settings, kind: str = "BertModel") -> None:
    """Save a BERT of random weights, as a folder that users would name; a classifier has two classes."""
    import torch
    import transformers

    quiet()
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=settings.vocabulary, **settings.teacher.named())
    getattr(transformers, kind)(config).save_pretrained(folder)


# ----------------------------------------------------------------------------------- what it says
def summarise(samples: dict[str, list[float]], memory: dict[str, float], batch: int) -> dict[str, float]:
    """The figures; ratios only to the sides that were measured too."""
    figures: dict[str, float] = {}
    for side, (_, speedup, ratio) in OTHERS.items():
        if f"{side}_seconds" in samples:
            times = median(samples[f"{side}_seconds"]) / median(samples["ours_seconds"])
            figures[speedup] = round(times, 3)
            figures[ratio] = round(memory["ours_peak_mb"] / memory[f"{side}_peak_mb"], 3)
    for name, seconds in samples.items():
        figures[f"{name.removesuffix('_seconds')}_sequences_per_s"] = round(batch / median(seconds), 3)
    return {**figures, **{name: round(mb, 1) for name, mb in memory.items()}}


def show(figures: dict[str, float], settings: Settings) -> None:
    """Print the figures as a table, a row for each side."""
    from benchmarks import step_textbrewer

    sides = [name for name in (*OTHERS, "ours") if f"{name}_peak_mb" in figures]
    columns = ("sequences_per_s", "peak_mb", "growth_mb")
    rows = [(name, *(f"{figures[f'{name}_{column}']:,.1f}" for column in columns)) for name in sides]
    note = NOTE.format(
        rounds=settings.rounds, precision=settings.teacher_precision, dropout=settings.student_dropout
    )
    print_table(
        f"One step of general distillation, {settings.batch} x {settings.length} tokens",
        ("", "sequences/s", "peak MB", "growth MB"),
        rows,
        f"{note}\n{step_textbrewer.NOTE}" if "textbrewer" in sides else note,
    )
    for called, speedup, ratio in OTHERS.values():
        if speedup in figures:
            print(
                f"Ours: {figures[speedup]:.2f} times {called}'s sequences/s, "
                f"{figures[ratio]:.2f} of its peak memory"
            )
    if "original" not in sides:
        alone = "Ours alone" if sides == ["ours"] else "Without the original"
        print(f"{alone}: for the comparison, --reference DIR names a checkout of the original")


if __name__ == "__main__":
    sys.exit(main())
