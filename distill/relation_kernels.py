"""Triton kernels of the relation losses; relations.PlainRelationDivergence is their plain twin.

As in Dao et al. 2022 (FlashAttention) tiles of scores are made anew for each gradient, and only the
softmaxes' totals are kept. Every program owns what it writes: the same input gives the same bits.
"""

# mypy: allow-incomplete-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from distill.tiles import (
    compiled_in,
    counted_of,
    is_narrow,
    load_rows,
    of_head,
    store_rows,
    width_of,
    with_shared_strides,
)

HIDDEN = tl.constexpr(-1e30)  # as in relations.py


def relation_shape(narrow: bool, width: int, other_width: int) -> dict[str, int]:
    """Rows of a tile, warps and stages; `narrow` are inputs of 16 bits."""
    tile = 64 if narrow and max(width, other_width) <= 64 else 32
    return {"TILE": tile, "num_warps": 4, "num_stages": 2 if narrow else 1}


def fits(own: Tensor, other: Tensor) -> bool:
    """Whether the tiles fit into a processor's shared memory."""
    widest = max(width_of(own.shape[-1]), width_of(other.shape[-1]))
    return widest <= (256 if is_narrow(own, other) else 128)


@triton.jit
def _scores(left, right, seen, scale):
    """A tile of scaled scores, (rows, keys)."""
    scores = tl.dot(left, tl.trans(right), input_precision="tf32x3") * scale
    return tl.where(seen[None, :], scores, HIDDEN)


@triton.jit
def _probabilities(scores, log_total, seen):
    """exp(scores - log_total), and 0 where a key is hidden or a row has none."""
    return tl.where(seen[None, :], tl.exp(scores - log_total[:, None]), 0.0)


@triton.jit
def _relation_loss_kernel(
    left,
    right,
    other_left,
    other_right,
    rows,
    keys,
    losses,
    log_totals,
    other_log_totals,
    own_batch,
    own_head,
    own_row,
    other_batch,
    other_head,
    other_row,
    heads,
    length,
    own_scale,
    other_scale,
    SIZE: tl.constexpr,
    OTHER_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    OTHER_WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """A tile of rows of one head: both softmaxes' totals and the divergence, in one pass of the keys.

    KL = sum_j p_t (t_j - s_j) - log Z_t + log Z_s. The sum is kept relative to the largest t so far.
    """
    program = tl.program_id(0)
    batch, head = (program // heads).to(tl.int64), (program % heads).to(tl.int64)
    left = of_head(left, batch, head, own_batch, own_head)
    right = of_head(right, batch, head, own_batch, own_head)
    other_left = of_head(other_left, batch, head, other_batch, other_head)
    other_right = of_head(other_right, batch, head, other_batch, other_head)

    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = at < length
    counted = counted_of(rows + batch * length, at, length)
    a = load_rows(left, at, own_row, counted, SIZE, WIDTH, WIDEN)
    b = load_rows(other_left, at, other_row, counted, OTHER_SIZE, OTHER_WIDTH, WIDEN)
    largest = tl.full((TILE,), HIDDEN, tl.float32)
    other_largest = tl.full((TILE,), HIDDEN, tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    other_total = tl.zeros((TILE,), tl.float32)
    difference = tl.zeros((TILE,), tl.float32)
    for start in range(0, length, TILE):
        to = start + tl.arange(0, TILE)
        seen = counted_of(keys + batch * length, to, length)
        s = _scores(a, load_rows(right, to, own_row, seen, SIZE, WIDTH, WIDEN), seen, own_scale)
        t = _scores(
            b,
            load_rows(other_right, to, other_row, seen, OTHER_SIZE, OTHER_WIDTH, WIDEN),
            seen,
            other_scale,
        )
        larger = tl.maximum(largest, tl.max(s, 1))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(s - larger[:, None]), 1)
        largest = larger
        larger = tl.maximum(other_largest, tl.max(t, 1))
        weights = tl.exp(t - larger[:, None])
        shrink = tl.exp(other_largest - larger)
        other_total = other_total * shrink + tl.sum(weights, 1)
        difference = difference * shrink + tl.sum(weights * (t - s), 1)  # hidden keys: 0
        other_largest = larger

    log_total = largest + tl.log(total)
    other_log_total = other_largest + tl.log(other_total)
    divergence = difference / other_total - other_log_total + log_total
    divergence = tl.where(counted, divergence, 0.0)
    tl.store(losses + program * tl.num_programs(1) + tl.program_id(1), tl.sum(divergence))
    place = program.to(tl.int64) * length + at
    tl.store(log_totals + place, log_total, mask=inside)
    tl.store(other_log_totals + place, other_log_total, mask=inside)


@triton.jit
def _relation_gradient_kernel(
    left,
    right,
    other_left,
    other_right,
    rows,
    keys,
    log_totals,
    other_log_totals,
    gradients,
    grad,
    own_batch,
    own_head,
    own_row,
    other_batch,
    other_head,
    other_row,
    out_batch,
    out_head,
    out_row,
    heads,
    length,
    own_scale,
    other_scale,
    SIZE: tl.constexpr,
    OTHER_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    OTHER_WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    WIDEN: tl.constexpr,
    OF_RIGHT: tl.constexpr,
):
    """A tile of one head's gradient: (P_s - P_t) times the right side, or its transpose times the left."""
    program = tl.program_id(0)
    batch, head = (program // heads).to(tl.int64), (program % heads).to(tl.int64)
    left = of_head(left, batch, head, own_batch, own_head)
    right = of_head(right, batch, head, own_batch, own_head)
    other_left = of_head(other_left, batch, head, other_batch, other_head)
    other_right = of_head(other_right, batch, head, other_batch, other_head)
    gradients = of_head(gradients, batch, head, out_batch, out_head)
    rows += batch * length
    keys += batch * length
    log_totals += program.to(tl.int64) * length
    other_log_totals += program.to(tl.int64) * length

    mine = tl.program_id(1) * TILE + tl.arange(0, TILE)
    gradient = tl.zeros((TILE, WIDTH), tl.float32)
    for start in range(0, length, TILE):
        theirs = start + tl.arange(0, TILE)
        if OF_RIGHT:
            at, to = theirs, mine
        else:
            at, to = mine, theirs
        counted = counted_of(rows, at, length)
        seen = counted_of(keys, to, length)
        a = load_rows(left, at, own_row, counted, SIZE, WIDTH, WIDEN)
        b = load_rows(right, to, own_row, seen, SIZE, WIDTH, WIDEN)
        s = _scores(a, b, seen, own_scale)
        t = _scores(
            load_rows(other_left, at, other_row, counted, OTHER_SIZE, OTHER_WIDTH, WIDEN),
            load_rows(other_right, to, other_row, seen, OTHER_SIZE, OTHER_WIDTH, WIDEN),
            seen,
            other_scale,
        )
        log_total = tl.load(log_totals + at, mask=at < length, other=0.0)
        other_log_total = tl.load(other_log_totals + at, mask=at < length, other=0.0)
        error = _probabilities(s, log_total, seen) - _probabilities(t, other_log_total, seen)
        error = tl.where(counted[:, None], error, 0.0)
        if OF_RIGHT:
            gradient = tl.dot(tl.trans(error.to(a.dtype)), a, gradient, input_precision="tf32x3")
        else:
            gradient = tl.dot(error.to(b.dtype), b, gradient, input_precision="tf32x3")
    gradient *= own_scale * tl.load(grad)
    store_rows(gradients, mine, out_row, gradient, length, SIZE, WIDTH)


class RelationDivergence(torch.autograd.Function):
    """Sum of KL(softmax(c_t Pt_i . Qt_j) || softmax(c_s Ps_i . Qs_j)) over batch, heads and rows i."""

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
        """As relations.PlainRelationDivergence."""
        left, right = with_shared_strides(left, right)
        other_left, other_right = with_shared_strides(other_left, other_right)
        rows, keys = rows.contiguous(), keys.contiguous()
        batch, heads, length, _ = left.shape
        settings = compiled_in(left, other_left)
        shape = relation_shape(is_narrow(left, other_left), settings["WIDTH"], settings["OTHER_WIDTH"])
        tiles = triton.cdiv(length, shape["TILE"])
        losses = left.new_empty(batch * heads * tiles, dtype=torch.float32)
        totals = [left.new_empty((batch, heads, length), dtype=torch.float32) for _ in range(2)]
        ctx.scales = (scale, other_scale)
        ctx.grid = (batch * heads, tiles)  # the second may be 65,535 at most
        ctx.settings = {**settings, **shape}
        ctx.save_for_backward(left, right, other_left, other_right, rows, keys, *totals)
        _relation_loss_kernel[ctx.grid](
            left,
            right,
            other_left,
            other_right,
            rows,
            keys,
            losses,
            *totals,
            *left.stride()[:3],
            *other_left.stride()[:3],
            heads,
            length,
            *ctx.scales,
            **ctx.settings,
        )
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        left, right, other_left, other_right, rows, keys, *totals = ctx.saved_tensors
        batch, heads, length, size = left.shape

        def gradient(of_right: bool) -> Tensor:
            out = left.new_empty((batch, length, heads, size)).transpose(1, 2)
            _relation_gradient_kernel[ctx.grid](
                left,
                right,
                other_left,
                other_right,
                rows,
                keys,
                *totals,
                out,
                grad,
                *left.stride()[:3],
                *other_left.stride()[:3],
                *out.stride()[:3],
                heads,
                length,
                *ctx.scales,
                **ctx.settings,
                OF_RIGHT=of_right,
            )
            return out

        wanted = ctx.needs_input_grad
        return (
            gradient(False) if wanted[0] else None,
            gradient(True) if wanted[1] else None,
            *[None] * 6,
        )
