"""Relation losses: how tokens relate to one another in a layer, whatever its heads (MiniLM).

Queries, keys or values of all heads are laid side by side and cut anew into relation heads, of which
student and teacher have as many, so that their own numbers of heads may differ. The relation of a head
is softmax(A B' / sqrt(size)); the loss is its Kullback-Leibler divergence from the teacher's. Wang et
al. 2020 (MiniLM) use the attention distribution (qk) and the value relation (vv) of the last layer, Wang
et al. 2021 (MiniLMv2) the relations qq, kk and vv.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.attention import Heads
from distill.fused import kernel
from distill.products import fast_products

HIDDEN = -1e30  # the score of a masked key; finite, so that a row without keys has no NaN
TILE = 1 << 22  # entries of a score matrix that exist at once: 16 MB in fp32


class PlainRelationDivergence(torch.autograd.Function):
    """Sum of KL(softmax(c_t Pt_i . Qt_j) || softmax(c_s Ps_i . Qs_j)) over batch, heads, rows i, by tiles.

    A tile of queries is compared and its gradients (softmax_s - softmax_t times the other side) are
    added up at once, so time is quadratic in the length but memory linear.
    """

    @staticmethod
    def forward(
        ctx: Any,
        left: Tensor,
        right: Tensor,
        other_left: Tensor,
        other_right: Tensor,
        rows: Tensor,
        keys: Tensor,
        scale: float,
        other_scale: float,
    ) -> Tensor:
        """The student's and the teacher's (`other_`) sides, (batch, heads, length, size); masks of the left
        side's positions (`rows`) and the right's (`keys`), (batch, length).
        """
        ctx.dtype = left.dtype
        left, right, other_left, other_right = (
            part.float() for part in (left * scale, right, other_left * other_scale, other_right)
        )
        batch, heads, length, _ = left.shape
        hidden = ~keys[:, None, None, :].bool()
        for_left, for_right = torch.empty_like(left), torch.zeros_like(right)
        loss = left.new_zeros(())
        step = max(1, TILE // (batch * heads * length))
        for begin in range(0, length, step):
            tile = slice(begin, begin + step)
            own = _log_softmax(left[:, :, tile], right, hidden)
            target = _log_softmax(other_left[:, :, tile], other_right, hidden)
            counted = rows[:, None, tile, None].float()
            probability = target.exp()
            divergence = probability * (target - own)
            loss = loss + (divergence * counted).sum()
            gradient = (own.exp() - probability) * counted  # (batch, heads, tile, length)
            for_left[:, :, tile] = gradient @ right
            for_right += gradient.mT @ left[:, :, tile]
        ctx.save_for_backward(for_left * scale, for_right)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        for_left, for_right = ((grad * saved).to(ctx.dtype) for saved in ctx.saved_tensors)
        return for_left, for_right, *[None] * 6


def _log_softmax(left: Tensor, right: Tensor, hidden: Tensor) -> Tensor:
    return (left @ right.mT).masked_fill(hidden, HIDDEN).log_softmax(dim=-1)


def regroup(part: Tensor, heads: int) -> Tensor:
    """(batch, own heads, length, size) as (batch, heads, length, width / heads); 0 keeps the heads."""
    if not heads:
        return part
    batch, own, length, size = part.shape
    flat = part.transpose(1, 2).reshape(batch, length, heads, own * size // heads)
    return flat.transpose(1, 2)


def relation_loss(
    student: Heads, teacher: Heads, kind: str, heads: int, query_mask: Tensor, key_mask: Tensor
) -> Tensor:
    """The divergence of one kind of relation (Wang et al. 2020, eqs. 5 and 6; 2021, eq. 4).

    Args:
        student: Queries, keys and values of one layer, (batch, own heads, length, size).
        teacher: The teacher's; takes no gradient.
        kind: Two of the letters q, k, v: what is multiplied with what.
        heads: Relation heads; must divide both widths. 0 takes each model's own, of which they have
            as many.
        query_mask: (batch, length), 0 where a row of the relation doesn't count.
        key_mask: (batch, length), 0 where a column doesn't.

    Returns the sum over batch and queries of the mean over heads, in fp32.
    """
    own, other = student.sides(kind), teacher.sides(kind)
    parts = [regroup(part, heads) for part in (*own, *(side.detach() for side in other))]
    fused = kernel("relation_kernels", query_mask.device.type)
    fused = fused if fused and fused.fits(parts[0], parts[2]) else None
    function = fused.RelationDivergence if fused else PlainRelationDivergence
    scales = (side.shape[-1] ** -0.5 for side in (parts[0], parts[2]))
    with torch.autocast(query_mask.device.type, enabled=False), fast_products(query_mask.shape[1]):
        total = function.apply(*parts, query_mask, key_mask, *scales)
    return total / parts[0].shape[1]
