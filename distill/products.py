"""Products of fp32 matrices on AMD's CPUs: by oneDNN, in place of the MKL that torch asks.

MKL's kernels for them stop at AVX2; oneDNN's have AVX-512 and are twice as fast. torch has no switch for
oneDNN but one that also permits it to round to bf16: it does so where there is AMX, and multiplies in fp32
elsewhere. The switch is on around single large products alone, for the many small ones inside of torch's
attention take oneDNN longer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SWITCH: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
CPUINFO = Path("/proc/cpuinfo")
BLOCK = 64  # rows: oneDNN keeps what it makes for each number of them, and texts have all lengths
ROWS = 1024  # of the products that a weight is laid out for


@functools.cache
def by_onednn() -> bool:
    """Whether oneDNN's products in fp32 serve this machine: it is faster, and does not round to bf16."""
    return mkl_is_slow() and torch.cpu._is_avx512_supported() and is_exact()


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
def fast_products() -> Iterator[None]:
    """Let products of matrices inside take the faster way; of no effect where there is but one."""
    if by_onednn():
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
    """left @ right + bias, (rows, depth) and (depth, width): whole blocks of rows the faster way."""
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
    """A frozen weight as oneDNN lays it out, kept as long as the weight is the same."""

    def __init__(self) -> None:
        self._of: tuple[int, int] | None = None
        self._layout: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Packed:
        return _Packed()  # torch can't copy such a layout

    def __call__(self, weight: Tensor) -> Tensor:
        now = weight.data_ptr(), weight._version
        if self._layout is None or self._of != now:
            self._layout = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
            self._of = now
        return self._layout


class FastLinear(nn.Linear):
    """A linear layer on a CPU whose products in fp32 take the faster way.

    Where nothing trains, the weight is laid out once for all products; it is held twice then.
    """

    packed: _Packed

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        if self.weight.dtype != torch.float32 or self.weight.device.type != "cpu":
            return super().forward(input)
        if self.weight.requires_grad or (input.requires_grad and torch.is_grad_enabled()):
            return _Product.apply(input, self.weight, self.bias)
        rows, bias = input.reshape(-1, input.shape[-1]), self.bias
        count = len(rows)
        if count > BLOCK and count % (BLOCK // 2):
            rows = nn.functional.pad(rows, (0, 0, 0, -count % (BLOCK // 2)))
        out = torch.ops.mkldnn._linear_pointwise(
            rows, self.packed(self.weight), None if bias is None else bias.detach(), "none", [], ""
        )
        return out[:count].view(*input.shape[:-1], out.shape[-1])


def speed_up_products(model: nn.Module) -> None:
    """Make a model's linear layers take the faster way, where there is one; their weights stay theirs."""
    if by_onednn():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = FastLinear
                cast(FastLinear, module).packed = _Packed()


def _flops(inputs: torch.Size, layout: torch.Size, *rest: Any, **kwargs: Any) -> int:
    return 2 * math.prod(inputs) * layout[0]


FLOPS = {torch.ops.mkldnn._linear_pointwise: _flops}  # for torch's counter, which doesn't know it
