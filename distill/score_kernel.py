"""Triton kernel of the attention-score loss; losses.PlainScoreError is its plain twin.

One program a head makes the Gram matrices of its queries and of its keys (docs/architecture.md), then the
loss and both gradients. Sums are fp32, no (length, length) matrix is written, and every program owns what
it writes: the same input gives the same bits.
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
    product,
    store_rows,
    width_of,
    with_shared_strides,
)


def score_shape(narrow: bool, width: int, other_width: int) -> dict[str, int]:
    """Rows of a tile, warps and stages: the largest tile whose code for compute capability 9.0 spills
    no registers, or few. `narrow` are inputs of 16 bits.
    """
    if not narrow:
        return {"TILE": 16, "num_warps": 8, "num_stages": 1}
    return {"TILE": 32, "num_warps": 4 if width + other_width <= 96 else 8, "num_stages": 2}


def fits(own: Tensor, other: Tensor) -> bool:
    """Whether the Gram matrices fit into a processor's registers and shared memory."""
    width, narrow = width_of(own.shape[-1]), own.dtype == other.dtype and own.element_size() == 2
    if own.dtype == torch.float16 and width > 64:  # its gradients are products in fp32, which take more
        return False
    return width + width_of(other.shape[-1]) <= (160 if narrow else 96)


@triton.jit
def _grams(
    side,
    other_side,
    mask,
    own_row,
    other_row,
    length,
    SIZE: tl.constexpr,
    OTHER_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    OTHER_WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Gram matrices of the student's rows, of the teacher's with the student's, of the teacher's."""
    own = tl.zeros((WIDTH, WIDTH), tl.float32)
    mixed = tl.zeros((OTHER_WIDTH, WIDTH), tl.float32)
    other = tl.zeros((OTHER_WIDTH, OTHER_WIDTH), tl.float32)
    for start in range(0, length, TILE):
        at = start + tl.arange(0, TILE)
        counted = counted_of(mask, at, length)
        s = load_rows(side, at, own_row, counted, SIZE, WIDTH, WIDEN)
        t = load_rows(other_side, at, other_row, counted, OTHER_SIZE, OTHER_WIDTH, WIDEN)
        own = tl.dot(tl.trans(s), s, own, input_precision="tf32x3")
        mixed = tl.dot(tl.trans(t), s, mixed, input_precision="tf32x3")
        other = tl.dot(tl.trans(t), t, other, input_precision="tf32x3")
    return own, mixed, other


@triton.jit
def _write_gradient(
    side,
    other_side,
    mask,
    out,
    own,
    mixed,
    own_row,
    other_row,
    out_row,
    length,
    SIZE: tl.constexpr,
    OTHER_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    OTHER_WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    WIDEN: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Rows times the opposite side's Gram matrices, in the student's columns."""
    for start in range(0, length, TILE):
        at = start + tl.arange(0, TILE)
        counted = counted_of(mask, at, length)
        s = load_rows(side, at, own_row, counted, SIZE, WIDTH, WIDEN)
        t = load_rows(other_side, at, other_row, counted, OTHER_SIZE, OTHER_WIDTH, WIDEN)
        gradient = product(s, own, tl.zeros((TILE, WIDTH), tl.float32), SPLIT)
        gradient = product(t, mixed, gradient, SPLIT)
        store_rows(out, at, out_row, gradient, length, SIZE, WIDTH)


@triton.jit
def _score_kernel(
    query,
    key,
    other_query,
    other_key,
    rows,
    columns,
    for_query,
    for_key,
    losses,
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
    SPLIT: tl.constexpr,
):
    """One head: Gram matrices of its queries and of its keys, the loss, then both gradients."""
    program = tl.program_id(0)
    batch, head = (program // heads).to(tl.int64), (program % heads).to(tl.int64)
    query = of_head(query, batch, head, own_batch, own_head)
    key = of_head(key, batch, head, own_batch, own_head)
    other_query = of_head(other_query, batch, head, other_batch, other_head)
    other_key = of_head(other_key, batch, head, other_batch, other_head)
    rows += batch * length
    columns += batch * length

    # fmt: off
    query_own, query_mixed, query_other = _grams(
        query, other_query, rows, own_row, other_row, length,
        SIZE, OTHER_SIZE, WIDTH, OTHER_WIDTH, TILE, WIDEN,
    )
    key_own, key_mixed, key_other = _grams(
        key, other_key, columns, own_row, other_row, length,
        SIZE, OTHER_SIZE, WIDTH, OTHER_WIDTH, TILE, WIDEN,
    )

    # The queries' Gram matrices take the scales; the teacher's queries stand in A with a minus.
    query_own *= own_scale * own_scale
    query_mixed *= -own_scale * other_scale
    query_other *= other_scale * other_scale
    loss = tl.sum(query_own * key_own) + 2 * tl.sum(query_mixed * key_mixed)
    tl.store(losses + program, loss + tl.sum(query_other * key_other))

    # 2 A (B'B) and 2 B (A'A).
    key_own *= 2 * own_scale * own_scale
    key_mixed *= -2 * own_scale * other_scale
    _write_gradient(
        query, other_query, rows, of_head(for_query, batch, head, out_batch, out_head), key_own, key_mixed,
        own_row, other_row, out_row, length,
        SIZE, OTHER_SIZE, WIDTH, OTHER_WIDTH, TILE, WIDEN, SPLIT,
    )
    _write_gradient(
        key, other_key, columns, of_head(for_key, batch, head, out_batch, out_head), 2 * query_own,
        2 * query_mixed, own_row, other_row, out_row, length,
        SIZE, OTHER_SIZE, WIDTH, OTHER_WIDTH, TILE, WIDEN, SPLIT,
    )
    # fmt: on


class ScoreError(torch.autograd.Function):
    """Sum of (c_s Qs_i . Ks_j - c_t Qt_i . Kt_j)^2 by Gram matrices; one program a head."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        other_query: Tensor,
        other_key: Tensor,
        rows: Tensor,
        columns: Tensor,
        scale: float,
        other_scale: float,
    ) -> Tensor:
        """As losses.PlainScoreError."""
        query, key = with_shared_strides(query, key)
        other_query, other_key = with_shared_strides(other_query, other_key)
        batch, heads, length, size = query.shape
        # The sums can be too large for fp16; bf16 holds them, and half the bytes of fp32.
        kept = torch.bfloat16 if query.dtype == torch.bfloat16 else torch.float32
        lying = (batch, length, heads, size)  # contiguous for the backward pass of the projections
        for_query, for_key = (query.new_empty(lying, dtype=kept).transpose(1, 2) for _ in range(2))
        losses = query.new_empty(batch * heads, dtype=torch.float32)
        settings = compiled_in(query, other_query)
        shape = score_shape(is_narrow(query, other_query), settings["WIDTH"], settings["OTHER_WIDTH"])
        _score_kernel[(batch * heads,)](
            query,
            key,
            other_query,
            other_key,
            rows.contiguous(),
            columns.contiguous(),
            for_query,
            for_key,
            losses,
            *query.stride()[:3],
            *other_query.stride()[:3],
            *for_query.stride()[:3],
            heads,
            length,
            scale,
            other_scale,
            **settings,
            **shape,
            SPLIT=query.dtype == other_query.dtype == torch.bfloat16,
        )
        ctx.save_for_backward(for_query, for_key)
        ctx.dtype = query.dtype
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        for_query, for_key = ((grad * saved).to(ctx.dtype) for saved in ctx.saved_tensors)
        return for_query, for_key, *[None] * 6
