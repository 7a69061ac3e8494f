"""What a step costs and how near the machine's limit it runs: FLOPs, ceiling, utilisation, memory, traces.

Model FLOPs (Chowdhery et al. 2022, PaLM, appendix B) are what the mathematics of a step asks for: the
teacher's forward, and the student's forward and backward at three times its forward. What an
implementation adds or repeats, losses and padding among it, counts for nothing.
"""

from __future__ import annotations

import resource
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from distill import int8, products
from distill.encoders import Batch, model_inputs
from distill.model_facts import positions
from distill.products import fast_products
from distill.read_places import reading

LONGEST = 32  # of the three sequences that a cost is fitted to; a convolution may need some tokens
SIZE = {"cuda": 8192, "cpu": 1024}  # of the square matrices that the ceiling is measured with
REPEATS = 5


@dataclass(frozen=True)
class Cost:
    """FLOPs of one pass, as a polynomial in a sequence's length."""

    per_sequence: float = 0.0
    per_token: float = 0.0
    per_pair: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.per_sequence + other.per_sequence,
            self.per_token + other.per_token,
            self.per_pair + other.per_pair,
        )

    def times(self, factor: float) -> Cost:
        """The cost of so many passes."""
        return Cost(factor * self.per_sequence, factor * self.per_token, factor * self.per_pair)

    def flops(self, sequences: float, tokens: float, pairs: float) -> float:
        """FLOPs of so many sequences, tokens and pairs of tokens within a sequence."""
        return self.per_sequence * sequences + self.per_token * tokens + self.per_pair * pairs


@torch.no_grad()
def forward_cost(run: Callable[[Batch], object], device: torch.device, longest: int = LONGEST) -> Cost:
    """Count the matrix products of one forward pass, `run`, on `device`, of at most `longest` tokens.

    A pass over n tokens costs a + b n + c n^2: three short passes tell a, b and c.
    """
    lengths = [min(longest, LONGEST) * quarters // 4 for quarters in (2, 3, 4)]
    counted = []
    for length in lengths:
        ids = torch.zeros((1, length), dtype=torch.long, device=device)
        batch = Batch(ids, torch.ones_like(ids), torch.zeros_like(ids))
        counted.append(count_flops(partial(run, batch)))
    powers = np.vander(np.array(lengths, dtype=float), increasing=True)
    return Cost(*np.linalg.solve(powers, np.array(counted, dtype=float)).round().tolist())


def model_cost(model: PreTrainedModel, head_share: float = 1.0, hidden: bool = False) -> Cost:
    """The cost of a model's shape, counted on a copy: its own weights may lie elsewhere, or in parts.

    `head_share` is the share of the tokens that its head sees; `hidden` as for `reading`.
    """
    with torch.random.fork_rng(devices=[]):
        copy = type(model)(model.config).eval()
    for name, _ in list(copy.named_children()):
        if getattr(model, name) is None:  # a pooler, left out
            setattr(copy, name, None)
    if head_share == 1:
        with reading(copy, None, hidden):
            return _plain_cost(copy)
    # The head's share of the tokens passes through all; the rest through what `reading` leaves of the body.
    body = copy.base_model
    with reading(body, torch.zeros(0, dtype=torch.long), hidden):
        unread = _plain_cost(body)
    return _plain_cost(copy).times(head_share) + unread.times(1 - head_share)


def _plain_cost(model: PreTrainedModel) -> Cost:
    longest = positions(model.config.to_dict())
    return forward_cost(lambda batch: model(**model_inputs(model, batch)), torch.device("cpu"), longest)


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of the matrix products and convolutions that `run` makes."""
    # Attention and LSTMs as the plain products that they are made of, which the counter knows.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hardware that is not here
        with (
            torch.backends.mkldnn.flags(enabled=False),
            torch.backends.cudnn.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False, custom_mapping=products.FLOPS | int8.FLOPS) as counter,
        ):
            run()
    return counter.get_total_flops()


def matrix_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of this process at a large square matrix product: the best of a few, after one to warm up."""
    size = SIZE.get(device.type, SIZE["cpu"])
    multiply = torch._int_mm if dtype == torch.int8 else torch.matmul
    # Times 32, so that int8 gets more than a few numbers around 0.
    a, b = (torch.randn(size, size, device=device).mul(32).to(dtype) for _ in range(2))
    best = 0.0
    for turn in range(REPEATS + 1):
        synchronise(device)
        begin = time.perf_counter()
        with fast_products():
            multiply(a, b)
        synchronise(device)
        if turn:
            best = max(best, 2 * size**3 / (time.perf_counter() - begin))
    return best


def synchronise(device: torch.device) -> None:
    """Wait for a GPU: its work ends when it does, not when it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory that this process has held, in MiB: the GPU's, or without one its own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak_memory(device: torch.device) -> None:
    """Begin to count a GPU's peak anew, as for a stage of training; a process's own can't be."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def profiled(steps: int, file: Path) -> Iterator[Callable[[], object]]:
    """Profile `steps` steps after two to warm up, and write a trace that Perfetto and Chrome open.

    Yields what is to be called after each step.
    """
    if not steps:
        yield lambda: None
        return
    plan = torch.profiler.schedule(wait=1, warmup=1, active=steps, repeat=1)
    with torch.profiler.profile(
        schedule=plan,
        record_shapes=True,
        on_trace_ready=lambda trace: trace.export_chrome_trace(str(file)),
    ) as profile:
        yield profile.step
