"""Products of fp32 matrices on AMD's CPUs: by oneDNN, in place of MKL, which torch calls by default.

MKL's kernels for them stop at AVX2; oneDNN's have AVX-512 and are twice as fast. torch has no switch for
oneDNN but one that also permits it to round to bf16: it does so where there is AMX, and multiplies in fp32
elsewhere. The switch is on around single large products alone, for oneDNN is slower at the many small ones
inside torch's attention. Weights that don't train go another way, laid out as oneDNN wants them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SWITCH: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
CPUINFO = Path("/proc/cpuinfo")
BLOCK = 64  # rows of a product: oneDNN makes and keeps a kernel for each number, and texts have all lengths
EIGHTH = BLOCK // 8
ROWS = 1024  # of the inputs that a weight is laid out for; others are multiplied too


@functools.cache
def by_onednn() -> bool:
    """Whether oneDNN's products in fp32 serve this machine: it is faster, and does not round to bf16."""
    return mkl_is_slow() and torch.cpu._is_avx512_supported() and is_exact()


def bf16_is_faster() -> bool:
    """Whether products in bf16 are faster than those in fp32 without AMX: on AMD's CPUs since Zen 4."""
    return mkl_is_slow() and torch.cpu._is_avx512_bf16_supported()


def padded(length: int) -> int:
    """A length, rounded up where that makes it one of few (see BLOCK)."""
    return -(-length // EIGHTH) * EIGHTH if by_onednn() else length


def mkl_is_slow() -> bool:
    """Whether torch multiplies by MKL, on a CPU of AMD."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    return CPUINFO.exists() and "AuthenticAMD" in CPUINFO.read_text(encoding="utf-8")


def is_exact() -> bool:
    """Whether oneDNN keeps a number that bf16 would round."""
    numbers = torch.full((64, 64), 1 + 2.0**-12)
    with _switched_on():
        return torch.equal(numbers @ torch.eye(64), numbers)


@contextmanager
def fast_products(length: int = 0) -> Iterator[None]:
    """Let matrix products inside go by oneDNN where it serves this machine (`by_onednn`).

    Not if their `length` is one that seldom recurs (see BLOCK); 0 says that it does.
    """
    if by_onednn() and length % (BLOCK // 2) == 0:
        with _switched_on():
            yield
    else:
        yield


@contextmanager
def _switched_on() -> Iterator[None]:
    before = SWITCH.fp32_precision
    SWITCH.fp32_precision = "bf16"
    try:
        yield
    finally:
        SWITCH.fp32_precision = before


def _multiply(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left @ right + bias, (rows, depth) and (depth, width): whole blocks of rows by oneDNN."""
    out = left.new_empty(left.shape[0], right.shape[1])
    whole = left.shape[0] // BLOCK * BLOCK
    with fast_products():
        _into(out[:whole], left[:whole], right, bias)
    _into(out[whole:], left[whole:], right, bias)
    return out


def _into(out: Tensor, left: Tensor, right: Tensor, bias: Tensor | None) -> None:
    if bias is None:
        torch.mm(left, right, out=out)
    else:
        torch.addmm(bias, left, right, out=out)


class _Product(torch.autograd.Function):
    """X W' + b, whose gradients take the same way: G W, G'X and the sum of G."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        rows = _multiply(inputs.reshape(-1, inputs.shape[-1]), weight.mT, bias)
        return rows.view(*inputs.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        for_inputs, for_weight, for_bias = ctx.needs_input_grad
        rows, own = grad.reshape(-1, grad.shape[-1]), inputs.reshape(-1, inputs.shape[-1])
        to_weight = None
        if for_weight:
            whole = len(rows) // BLOCK * BLOCK
            with fast_products():
                to_weight = rows[:whole].mT @ own[:whole]
            to_weight.addmm_(rows[whole:].mT, own[whole:])
        return (
            _multiply(rows, weight).view(inputs.shape) if for_inputs else None,
            to_weight,
            rows.sum(dim=0) if for_bias else None,
        )


class _Packed:
    """A frozen weight as oneDNN lays it out, made anew when the weight is another or is changed.

    What is written through `.data` is not seen.
    """

    def __init__(self) -> None:
        self._of: Tensor | None = None
        self._version = 0
        self._layout: Tensor | None = None

    def __reduce__(self) -> tuple[type[_Packed], tuple[()]]:
        return _Packed, ()  # torch can neither copy nor save such a layout

    def __call__(self, weight: Tensor) -> Tensor:
        same = self._of is not None and self._of.data_ptr() == weight.data_ptr()
        if self._layout is None or not same or self._version != weight._version:
            self._of, self._version = weight.detach(), weight._version  # kept: no other gets its address
            self._layout = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        return self._layout


class FastLinear(nn.Linear):
    """A linear layer on a CPU whose products in fp32 go by oneDNN.

    Where nothing trains, the weight is laid out once for all products; it is held twice then.
    """

    packed: _Packed | None = None

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        weight, bias = self.weight, self.bias
        trained = weight.requires_grad or (
            torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad))
        )
        plain = self._is_plain(input)
        if trained or not plain:
            self.packed = None
            some = plain and input.numel() >= BLOCK * input.shape[-1]  # fewer rows go by MKL anyway
            return _Product.apply(input, weight, bias) if some else super().forward(input)
        self.packed = self.packed or _Packed()
        rows = input.reshape(-1, input.shape[-1])
        count = len(rows)
        if count > BLOCK and count % (BLOCK // 2):  # to one of few numbers of rows
            rows = nn.functional.pad(rows, (0, 0, 0, -count % (BLOCK // 2)))
        added = None if bias is None else bias.detach()
        out = torch.ops.mkldnn._linear_pointwise(rows, self.packed(weight), added, "none", [], "")
        return out[:count].view(*input.shape[:-1], out.shape[-1])

    def _is_plain(self, input: Tensor) -> bool:
        """Whether this is a product in fp32 on a CPU, as deep as the weight, that torch only computes."""
        return (
            input.dtype == self.weight.dtype == torch.float32
            and input.device.type == self.weight.device.type == "cpu"
            and input.layout == torch.strided
            and input.shape[-1:] == self.weight.shape[1:]
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not self.weight.is_inference()
        )


def speed_up_products(model: nn.Module) -> None:
    """Make a model's linear layers FastLinear where oneDNN is faster; their weights stay as they are."""
    if by_onednn():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = FastLinear


def _flops(inputs: torch.Size, layout: torch.Size, *rest: Any, **kwargs: Any) -> int:
    return 2 * math.prod(inputs) * layout[0]


# For torch's counter, which doesn't know it.
FLOPS = {torch.ops.mkldnn._linear_pointwise: _flops} if torch.backends.mkldnn.is_available() else {}
