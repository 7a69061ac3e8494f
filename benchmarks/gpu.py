"""Benchmark `gpu`: the step and its kernels on a GPU, beside the machine's limits and the unfused forms.

    python -m benchmarks.gpu [--reference DIR] [--json FILE] [--batch 256] [--rounds N]

First the ceilings: bf16 matrix products and copies. Then each kernel, forward and backward, against the
same loss by whole score matrices and against its floor, the larger of its bytes and its FLOPs at the
ceilings; and at lengths up to 2,048 with as many tokens. Last the step of general distillation, from a
BERT-base shape to 4 layers of 312 and 6 of 768: ours, transformers with eager attention and
output_attentions in bf16, and with --reference the original TinyBERT loop.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import step
from benchmarks.record import print_table, reference_folder, write_record
from benchmarks.sides import Steps, in_own_process, measure, seconds_of, synchronise

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HEADS = 12
SIZES = (26, 64)  # of the student's and the teacher's heads
TOKENS = 32_768  # of a batch, at any length
LENGTHS = (128, 512, 2048)
REPEATS = 20
SHAPES = {"4x312": step.Shape(4, 312, 12, 1200), "6x768": step.Shape(6, 768, 12, 3072)}
TEACHER = step.Shape(12, 768, 12, 3072)
NOTE = (
    "Ceilings: {tflops:.0f} TFLOP/s of bf16 products, {bandwidth:.0f} GB/s of copies, measured first. "
    "A floor is the larger of bytes and FLOPs at those."
)


@dataclass(frozen=True)
class Ceilings:
    """FLOP/s and bytes/s that this machine reaches."""

    flops: float
    bandwidth: float

    def floor(self, flops: float, bytes_moved: float) -> float:
        """Seconds that no implementation can beat."""
        return max(flops / self.flops, bytes_moved / self.bandwidth)


@dataclass(frozen=True)
class Kernel:
    """A loss in both forms, and what it must do at the least, as functions of one batch's inputs."""

    fused: Callable[..., Tensor]
    unfused: Callable[..., Tensor]
    flops: Callable[[int, int], float]  # of (batch, length)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    import torch

    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--reference", metavar="DIR", help="the original's checkout or its TinyBERT folder")
    parser.add_argument("--json", metavar="FILE", help="write the record here")
    parser.add_argument("--batch", type=int, default=256, help="sequences of a step")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each side")
    options = parser.parse_args(arguments)
    try:
        if not torch.cuda.is_available():
            raise ValueError("benchmarks.gpu needs a GPU; benchmarks.step measures on a CPU")
        folder = reference_folder(options.reference, "transformer/modeling.py")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    ceilings = measure_ceilings(torch.device("cuda"))
    figures = {"bf16_tflops": ceilings.flops / 1e12, "copy_gb_s": ceilings.bandwidth / 1e9}
    figures |= measure_kernels(torch.device("cuda"), ceilings)
    torch.cuda.empty_cache()  # steps are measured in processes of their own
    settings = step.Settings(reference=folder, rounds=options.rounds, batch=options.batch)
    samples: dict[str, list[float]] = {}
    for name, shape in SHAPES.items():
        found, seconds = measure_step(name, replace(settings, student=shape, teacher=TEACHER), ceilings)
        figures |= found
        samples |= seconds
    figures = {name: round(value, 4) for name, value in figures.items()}
    show(figures, ceilings)
    if options.json:
        write_record(Path(options.json), "gpu", arguments, figures, samples, ["triton"])
    return 0


# ------------------------------------------------------------------------------ the machine's limits
def measure_ceilings(device: torch.device) -> Ceilings:
    """The fastest bf16 product of large square matrices and the fastest large copy."""
    import torch

    from distill.accounting import matrix_ceiling

    source = torch.empty(1 << 28, device=device)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source))
    return Ceilings(
        matrix_ceiling(device, torch.bfloat16), 2 * source.numel() * source.element_size() / seconds
    )


def timed(function: Callable[[], object]) -> float:
    """Median seconds of a call, after three to warm up."""
    return median([seconds_of(function) for _ in range(REPEATS + 3)][3:])


# -------------------------------------------------------------------------------------- the kernels
def kernels() -> dict[str, Kernel]:
    """The losses between tokens."""
    from distill.relation_kernels import RelationDivergence
    from distill.score_kernel import ScoreError

    own, other = SIZES
    pair = 2 * (own + other)  # FLOPs of one score of both sides

    def score_flops(batch: int, length: int) -> float:
        """The cheaper of Gram matrices and of scores, with the gradients of two student sides."""
        grams = 2 * 2 * length * (own + other) ** 2 / 2 + 2 * 2 * length * own * (own + other)
        scores = length * length * (pair + 2 * 2 * own)
        return batch * HEADS * min(grams, scores)

    def relation_flops(batch: int, length: int) -> float:
        return batch * HEADS * length * length * (pair + 2 * 2 * own)

    scales = tuple(size**-0.5 for size in SIZES)
    return {
        "attention_score": Kernel(
            lambda *sides: ScoreError.apply(*sides, *scales), unfused_scores, score_flops
        ),
        "relation": Kernel(
            lambda *sides: RelationDivergence.apply(*sides, *scales), unfused_relation, relation_flops
        ),
    }


def unfused_scores(
    query: Tensor, key: Tensor, other_query: Tensor, other_key: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """The attention-score loss as most code has it: both score matrices, masked, compared."""
    own = query @ key.mT * query.shape[-1] ** -0.5
    other = other_query @ other_key.mT * other_query.shape[-1] ** -0.5
    return ((own - other) * rows[:, None, :, None] * columns[:, None, None, :]).float().square().sum()


def unfused_relation(
    left: Tensor, right: Tensor, other_left: Tensor, other_right: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """The relation loss by whole softmaxes."""
    from torch.nn.functional import kl_div

    hidden = columns[:, None, None, :] == 0
    own, other = (
        (a @ b.mT * a.shape[-1] ** -0.5).float().masked_fill(hidden, -1e30).log_softmax(-1)
        for a, b in ((left, right), (other_left, other_right))
    )
    error = kl_div(own, other, reduction="none", log_target=True)
    return (error * rows[:, None, :, None]).sum()


def inputs(batch: int, length: int, device: torch.device) -> list[Tensor]:
    """Both sides of student and teacher in bf16, heads inside a token's row, and full masks."""
    import torch

    parts = [
        torch.randn(batch, length, HEADS, size, device=device, dtype=torch.bfloat16).transpose(1, 2)
        for size in (SIZES[0], SIZES[0], SIZES[1], SIZES[1])
    ]
    for part in parts[:2]:
        part.requires_grad_()
    mask = torch.ones(batch, length, device=device, dtype=torch.long)
    return [*parts, mask, mask]


def measure_kernels(
    device: torch.device, ceilings: Ceilings, tokens: int = TOKENS, lengths: tuple[int, ...] = LENGTHS
) -> dict[str, float]:
    """Milliseconds and MB of each kernel at each length, fused and unfused, and its floor."""
    figures: dict[str, float] = {}
    for name, kernel in kernels().items():
        for length in lengths:
            batch = max(1, tokens // length)
            sides = inputs(batch, length, device)
            moved = sum(part.numel() * part.element_size() for part in sides[:4])
            moved += sum(part.numel() * part.element_size() for part in sides[:2])  # gradients written
            at = f"{name}_{length}"
            fused, memory = _forward_and_backward(kernel.fused, sides, device)
            plain, plain_memory = _forward_and_backward(kernel.unfused, sides, device)
            floor = ceilings.floor(kernel.flops(batch, length), moved)
            figures |= {
                f"{at}_ms": 1000 * fused,
                f"{at}_unfused_ms": 1000 * plain,
                f"{at}_floor_ms": 1000 * floor,
                f"{at}_speedup": plain / fused,
                f"{at}_of_floor": floor / fused,
                f"{at}_mb": memory,
                f"{at}_unfused_mb": plain_memory,
            }
    return figures


def _forward_and_backward(
    function: Callable[..., Tensor], sides: list[Tensor], device: torch.device
) -> tuple[float, float]:
    """Seconds, and MB of memory beyond the inputs."""
    import torch

    def run() -> None:
        torch.autograd.grad(function(*sides), sides[:2])

    seconds = timed(run)
    if device.type != "cuda":
        return seconds, 0.0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return seconds, (torch.cuda.max_memory_allocated() - before) / 2**20


# ----------------------------------------------------------------------------------------- the step
def measure_step(
    name: str, settings: step.Settings, ceilings: Ceilings
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Figures and seconds of one student's step; the original by itself, for its memory is large."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        in_own_process(step.save_teacher, folder / "teacher", settings)
        sides: dict[str, Steps] = {
            "ours": partial(step.ours, settings, folder),
            "eager": partial(eager, settings, folder),
        }
        samples, memory = measure(sides, settings.rounds)
        batches = {"ours": settings.batch, "eager": settings.batch}
        if settings.reference:
            batches["original"], more, held = measure_original(settings)
            samples |= more
            memory |= held
    speeds = {side: batch / median(samples[f"{side}_seconds"]) for side, batch in batches.items()}
    flops = model_flops(settings) * speeds["ours"]
    figures = {f"{name}_{side}_sequences_per_s": speed for side, speed in speeds.items()}
    figures |= {f"{name}_{side}": mb for side, mb in memory.items()}
    figures |= {f"{name}_{side}_batch": float(batch) for side, batch in batches.items()}
    figures[f"{name}_of_ceiling"] = flops / ceilings.flops
    for side in batches.keys() - {"ours"}:
        figures[f"{name}_speedup_over_{side}"] = speeds["ours"] / speeds[side]
    return figures, {f"{name}_{side}": values for side, values in samples.items()}


def measure_original(
    settings: step.Settings,
) -> tuple[int, dict[str, list[float]], dict[str, float]]:
    """The original's step, of the largest batch that its memory allows: its size, seconds and memory."""
    batch = settings.batch
    while True:
        sides = {"original": partial(step.original, replace(settings, batch=batch))}
        try:
            return batch, *measure(sides, settings.rounds)
        except RuntimeError as error:
            if "out of memory" not in str(error) or batch == 1:
                raise
            batch //= 2


def model_flops(settings: step.Settings) -> float:
    """FLOPs that the mathematics of a step needs for one sequence: teacher once, student three times."""
    length, student, teacher = settings.length, settings.student, settings.teacher

    def encoder(shape: step.Shape) -> float:
        width = shape.hidden_size
        each = 2 * (4 * width * width + 2 * width * shape.intermediate_size) + 4 * width * length
        return shape.layers * length * each

    projected = 2 * (student.layers + 1) * length * student.hidden_size * teacher.hidden_size
    return encoder(teacher) + 3 * (encoder(student) + projected)


def eager(settings: step.Settings, folder: Path) -> Iterator[None]:
    """The step as a few lines of transformers make it: eager attention, every map and state, in bf16."""
    import torch
    from transformers import AutoModel, BertConfig, BertModel

    step.quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    kind = {"attn_implementation": "eager", "dtype": torch.bfloat16}
    teacher = AutoModel.from_pretrained(folder / "teacher", **kind).to(device).eval()
    config = BertConfig(vocab_size=settings.vocabulary, **settings.student.named())
    config._attn_implementation = "eager"
    student = BertModel(config).to(device, torch.bfloat16).train()
    projection = torch.nn.Linear(settings.student.hidden_size, settings.teacher.hidden_size)
    projection = projection.to(device, torch.bfloat16)
    optimizer = torch.optim.AdamW([*student.parameters(), *projection.parameters()], lr=5e-5, fused=True)
    block = settings.teacher.layers // settings.student.layers
    mse = torch.nn.functional.mse_loss
    yield

    for number in count():
        ids, mask, segments = (part.to(device) for part in step.tokens(number, settings))
        told = {"attention_mask": mask, "token_type_ids": segments}
        told |= {"output_attentions": True, "output_hidden_states": True}
        with torch.no_grad():
            target = teacher(ids, **told)
        own = student(ids, **told)
        maps = zip(own.attentions, target.attentions[block - 1 :: block], strict=True)
        states = zip(own.hidden_states, target.hidden_states[::block], strict=True)
        loss = sum(mse(a, b) for a, b in maps) + sum(mse(projection(a), b) for a, b in states)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronise()
        yield


# ------------------------------------------------------------------------------------ what it says
def show(figures: dict[str, float], ceilings: Ceilings) -> None:
    """Print the kernels' table and the steps'."""
    keys = ("ms", "unfused_ms", "speedup", "floor_ms", "of_floor", "mb", "unfused_mb")
    names = [name.removesuffix("_of_floor") for name in figures if name.endswith("_of_floor")]
    rows = [(name, *(f"{figures[f'{name}_{key}']:,.2f}" for key in keys)) for name in names]
    print_table(
        f"Kernels, forward and backward, {TOKENS:,} tokens, {HEADS} heads of {SIZES[0]} and {SIZES[1]}",
        ("loss and length", "ms", "unfused ms", "speed-up", "floor ms", "of floor", "MB", "unfused MB"),
        rows,
        NOTE.format(tflops=ceilings.flops / 1e12, bandwidth=ceilings.bandwidth / 1e9),
    )
    suffix = "_sequences_per_s"
    sides = [name.removesuffix(suffix) for name in figures if name.endswith(suffix)]
    lines = [
        (side, *(f"{figures[f'{side}{key}']:,.0f}" for key in ("_batch", suffix, "_peak_mb")))
        for side in sides
    ]
    shares = ", ".join(
        f"{name} {100 * figures[f'{name}_of_ceiling']:.0f} % of the bf16 ceiling"
        for name in SHAPES
        if f"{name}_of_ceiling" in figures
    )
    print_table(
        "One step of general distillation",
        ("student and side", "batch", "sequences/s", "peak MB"),
        lines,
        f"Ours: {shares}",
    )


if __name__ == "__main__":
    sys.exit(main())
