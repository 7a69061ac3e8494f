"""Linear layers with 8-bit matrix products, for a frozen teacher on a CPU.

CPUs with VNNI multiply 8-bit integers several times as fast as fp32; nearly every x86 server since 2019
has it, where AMX, for bf16, is rare. Weights have a scale for each output, activations one for each token,
found as they come (vector-wise quantisation, Dettmers et al. 2022, arXiv:2208.07339, section 2.1): no
calibration is needed, and a token's signal depends on its sequence alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LEVELS = 127  # to either side of zero
ZERO = 128  # activations are unsigned, which is what VNNI multiplies with signed weights
WORTH = 1 << 18  # numbers; fewer are rounded before a compiled function's guards are checked


def check_int8(device: torch.device) -> None:
    """Refuse hardware that would be slow, or wrong: without VNNI products are summed in 16 bits."""
    if device.type != "cpu":
        raise ValueError("teacher.precision: int8 is for CPUs; give bf16 or auto on this GPU")
    if not has_int8_units(device):
        raise ValueError(
            "teacher.precision: int8 needs a CPU with AVX-512 VNNI (avx512_vnni in /proc/cpuinfo); "
            "give auto"
        )


def has_int8_units(device: torch.device) -> bool:
    """Whether 8-bit products are faster than fp32 ones: CPUs with AVX-512 VNNI."""
    return device.type == "cpu" and torch.cpu._is_vnni_supported()


class Rounding:
    """Activations in 8 bits; the last ones are kept, for queries, keys and values are made of the same."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, tuple[Tensor, Tensor]] | None = None

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(..., width) in fp32 to (tokens, width) in 8 bits, and each token's scale: (tokens, 1)."""
        if self._last and self._last[0] is inputs and self._last[1] == inputs._version:
            return self._last[2]
        rows = inputs.reshape(-1, inputs.shape[-1])
        one_pass = _compiled() if rows.numel() >= WORTH else round_rows
        rounded, scale = one_pass(rows)
        self._last = inputs, inputs._version, (rounded, scale)
        return rounded, scale


class Int8Linear(nn.Module):
    """A frozen linear layer, fp32 in and out, whose product is one of 8-bit integers, summed in 32 bits."""

    def __init__(self, linear: nn.Linear, rounding: Rounding):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = scales(weight)
        outputs, inputs = weight.shape
        self.packed = torch.ops.onednn.qlinear_prepack(
            (weight / scale).round_().to(torch.int8), [1024, inputs]
        )
        self.scale = scale[:, 0].contiguous()
        self.zeros = torch.zeros(outputs, dtype=torch.int64)
        self.bias = torch.zeros(outputs) if linear.bias is None else linear.bias.detach().float()
        self.rounding = rounding

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        rounded, scale = self.rounding(inputs)
        outputs = torch.ops.onednn.qlinear_pointwise(
            rounded,
            1.0,
            ZERO,
            self.packed,
            self.scale,
            self.zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        torch.addcmul(self.bias, outputs, scale, out=outputs)
        return outputs.view(*inputs.shape[:-1], -1)


def round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens, width) in fp32 to 8 bits, above zero, and each token's scale: (tokens, 1)."""
    scale = scales(rows)
    return (rows / scale + (ZERO + 0.5)).to(torch.uint8), scale  # cutting off rounds


@functools.cache
def _compiled() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The same in one pass over memory instead of six; made in some seconds, once in a process."""
    return torch.compile(round_rows, dynamic=True)


def scales(rows: Tensor) -> Tensor:
    """What one level stands for in each row, (rows, 1): its largest magnitude has the last level."""
    largest = torch.maximum(rows.amax(1), -rows.amin(1))
    return (largest.clamp_min(torch.finfo(torch.float32).tiny * LEVELS) / LEVELS)[:, None]


def quantise(model: nn.Module) -> None:
    """Replace every linear layer of an encoder; embeddings, norms and attention stay in fp32."""
    rounding = Rounding()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child, rounding))


def _flops(inputs: torch.Size, *rest: Any, **kwargs: Any) -> int:
    packed = rest[2]
    return 2 * math.prod(inputs) * packed[-1]


FLOPS = {torch.ops.onednn.qlinear_pointwise: _flops}  # for torch's counter, which doesn't know it
