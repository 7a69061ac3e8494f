"""Hidden-state loss, fused with the projection to the teacher's width: no projected tensor is kept.

The student's states are projected a slice of rows at a time, compared, and turned into gradients at
once, so that the memory beside the inputs is one slice and autograd keeps what is as narrow as the student.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from distill.products import BLOCK, fast_products

# Entries of a slice: what a GPU multiplies at full speed and keeps in its second-level cache, and what
# a core keeps in its own.
SLICE = {"cuda": 1 << 24, "cpu": 1 << 20}


def slices(rows: int, most: int) -> Iterator[tuple[slice, int]]:
    """Slices of at most `most` of `rows` rows, each with its length: whole blocks first, then the rest."""
    most = most // BLOCK * BLOCK or most
    whole = rows // BLOCK * BLOCK if most >= BLOCK else rows
    for first, end in ((0, whole), (whole, rows)):
        for begin in range(first, end, most):
            stop = min(begin + most, end)
            yield slice(begin, stop), stop - begin


class _HiddenError(torch.autograd.Function):
    """Sum over rows that count of ||H W' + b - T||^2; gradients 2 E W, 2 E'H and the sum of 2 E."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, teacher: Tensor, mask: Tensor
    ) -> Tensor:
        """Shapes: hidden (rows, width), weight (out, width), teacher (rows, out), mask (rows,)."""
        mask = mask.to(hidden.dtype)[:, None]
        most = max(1, SLICE.get(hidden.device.type, SLICE["cpu"]) // len(weight))
        loss = hidden.new_zeros((), dtype=torch.float32)
        for_hidden = torch.empty_like(hidden)
        for_weight, for_bias = (torch.zeros_like(part, dtype=torch.float32) for part in (weight, bias))
        for part, rows in slices(len(hidden), most):
            with fast_products(rows):
                error = torch.addmm(teacher[part].to(hidden.dtype), hidden[part], weight.mT, beta=-1)
                error.add_(bias).mul_(mask[part])
                loss += torch.linalg.vector_norm(error, dtype=torch.float32).square()
                torch.mm(error, weight, out=for_hidden[part])
                if error.dtype == torch.bfloat16:
                    for_weight += (error.mT @ hidden[part]).float()
                else:  # sums over many rows are too large for fp16, and their means too small
                    for_weight.addmm_(error.mT.float(), hidden[part].float())
                for_bias += error.sum(dim=0, dtype=torch.float32)
        ctx.save_for_backward(for_hidden, for_weight, for_bias)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        for_hidden, for_weight, for_bias = ctx.saved_tensors
        twice = 2 * grad
        for_weight, for_bias = ((twice * part).to(ctx.dtype) for part in (for_weight, for_bias))
        return (twice * for_hidden).to(for_hidden.dtype), for_weight, for_bias, None, None


class HiddenProjection(nn.Linear):
    """A projection of the student's states to the teacher's width whose forward returns the loss."""

    def __init__(self, width: int, teacher_width: int, std: float):
        super().__init__(width, teacher_width)
        nn.init.normal_(self.weight, std=std)
        nn.init.zeros_(self.bias)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Squared error of projected hidden states (Jiao et al. 2020, TinyBERT, eqs. 8 and 9).

        Args:
            student: (batch, length, width).
            teacher: (batch, length, teacher width); takes no gradient.
            mask: (batch, length), 0 where a position doesn't count.

        Returns the sum over positions of the mean over the teacher's width, in fp32.
        """
        states, targets = student.flatten(0, 1), teacher.detach().flatten(0, 1)
        with torch.autocast(states.device.type, enabled=False):
            error = _HiddenError.apply(states, self.weight, self.bias, targets, mask.flatten())
        return error / targets.shape[-1]
