"""Triton kernels of the losses between tokens; each has a plain twin of the same signature.

`ScoreError` is the twin of losses.PlainScoreError, `RelationDivergence` of
relations.PlainRelationDivergence. Both read queries and keys where they lie, (batch, heads, length, size)
in any strides, sum in fp32, and never write a (length, length) matrix. Every program owns what it
writes and partial sums are added in one order, so the same input gives the same bits.

Head sizes need not be powers of two: a tile is as wide as the next one, its other columns read as zeros.
"""

# mypy: allow-incomplete-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret  # on a CPU, where bf16 has no matrix product
HIDDEN = tl.constexpr(-1e30)  # a score that counts as none; finite, so that a row without keys is too


def _width(size: int) -> int:
    return max(16, triton.next_power_of_2(size))  # a matrix product takes at least 16 columns


def _settings(own: Tensor, other: Tensor) -> dict[str, Any]:
    """What the head sizes and dtypes are compiled in as."""
    size, other_size = own.shape[-1], other.shape[-1]
    return {
        "SIZE": size,
        "OTHER_SIZE": other_size,
        "WIDTH": _width(size),
        "OTHER_WIDTH": _width(other_size),
        "WIDEN": own.dtype != other.dtype or INTERPRETED,
    }


# Tiles and warps: the largest whose code for compute capability 9.0 keeps its tiles in registers.
def score_shape(narrow: bool, width: int, other_width: int) -> dict[str, int]:
    """Rows of a tile, warps and stages of the score kernel; `narrow` are inputs of 16 bits."""
    if not narrow:
        return {"TILE": 16, "num_warps": 8, "num_stages": 1}
    return {"TILE": 32, "num_warps": 4 if width + other_width <= 96 else 8, "num_stages": 2}


def relation_shape(narrow: bool, width: int, other_width: int) -> dict[str, int]:
    """The same of the relation kernels."""
    tile = 64 if narrow and max(width, other_width) <= 64 else 32
    return {"TILE": tile, "num_warps": 4, "num_stages": 2 if narrow else 1}


def fits(own: Tensor, other: Tensor) -> bool:
    """Whether the score kernel's Gram matrices fit into a processor's registers and shared memory."""
    narrow = own.dtype == other.dtype and own.element_size() == 2
    return _width(own.shape[-1]) + _width(other.shape[-1]) <= (160 if narrow else 96)


def _is_narrow(settings: dict[str, Any], own: Tensor) -> bool:
    return INTERPRETED or (own.element_size() == 2 and not settings["WIDEN"])


def _side_by_side(*parts: Tensor) -> tuple[Tensor, ...]:
    """The tensors as they are where they share strides and rows are dense, else copies that do."""
    first = parts[0].stride()
    if first[-1] == 1 and all(part.stride() == first for part in parts):
        return parts
    return tuple(part.contiguous() for part in parts)


@triton.jit
def _load(base, rows, columns, stride, counted, SIZE: tl.constexpr, WIDEN: tl.constexpr):
    """Rows of one head, (rows, columns); zeros in rows that don't count and columns past the head."""
    keep = counted[:, None] & (columns < SIZE)[None, :]
    tile = tl.load(base + rows[:, None] * stride + columns[None, :], mask=keep, other=0.0)
    return tile.to(tl.float32) if WIDEN else tile


@triton.jit
def _store(base, rows, columns, stride, value, length, SIZE: tl.constexpr):
    keep = (rows < length)[:, None] & (columns < SIZE)[None, :]
    at = base + rows[:, None] * stride + columns[None, :]
    tl.store(at, value.to(base.dtype.element_ty), mask=keep)


@triton.jit
def _product(rows, matrix, total, SPLIT: tl.constexpr):
    """total + rows @ matrix for an fp32 matrix: as two bf16 parts, or by three tf32 products."""
    if SPLIT:
        high = matrix.to(tl.bfloat16)
        low = (matrix - high.to(tl.float32)).to(tl.bfloat16)
        total = tl.dot(rows, high.to(rows.dtype), total)
        return tl.dot(rows, low.to(rows.dtype), total)
    return tl.dot(rows.to(tl.float32), matrix, total, input_precision="tf32x3")


# ------------------------------------------------------------------------- attention scores
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
    query += batch * own_batch + head * own_head
    key += batch * own_batch + head * own_head
    other_query += batch * other_batch + head * other_head
    other_key += batch * other_batch + head * other_head
    for_query += batch * out_batch + head * out_head
    for_key += batch * out_batch + head * out_head
    rows += batch * length
    columns += batch * length
    own, other = tl.arange(0, WIDTH), tl.arange(0, OTHER_WIDTH)

    query_own = tl.zeros((WIDTH, WIDTH), tl.float32)
    query_mixed = tl.zeros((OTHER_WIDTH, WIDTH), tl.float32)
    query_other = tl.zeros((OTHER_WIDTH, OTHER_WIDTH), tl.float32)
    key_own = tl.zeros((WIDTH, WIDTH), tl.float32)
    key_mixed = tl.zeros((OTHER_WIDTH, WIDTH), tl.float32)
    key_other = tl.zeros((OTHER_WIDTH, OTHER_WIDTH), tl.float32)
    for start in range(0, length, TILE):
        at = start + tl.arange(0, TILE)
        counted = tl.load(rows + at, mask=at < length, other=0) != 0
        q = _load(query, at, own, own_row, counted, SIZE, WIDEN)
        t = _load(other_query, at, other, other_row, counted, OTHER_SIZE, WIDEN)
        query_own = tl.dot(tl.trans(q), q, query_own, input_precision="tf32x3")
        query_mixed = tl.dot(tl.trans(t), q, query_mixed, input_precision="tf32x3")
        query_other = tl.dot(tl.trans(t), t, query_other, input_precision="tf32x3")
        counted = tl.load(columns + at, mask=at < length, other=0) != 0
        k = _load(key, at, own, own_row, counted, SIZE, WIDEN)
        t = _load(other_key, at, other, other_row, counted, OTHER_SIZE, WIDEN)
        key_own = tl.dot(tl.trans(k), k, key_own, input_precision="tf32x3")
        key_mixed = tl.dot(tl.trans(t), k, key_mixed, input_precision="tf32x3")
        key_other = tl.dot(tl.trans(t), t, key_other, input_precision="tf32x3")

    # The queries' Gram matrices take the scales; the teacher's queries stand in A with a minus.
    query_own *= own_scale * own_scale
    query_mixed *= -own_scale * other_scale
    query_other *= other_scale * other_scale
    loss = tl.sum(query_own * key_own) + 2 * tl.sum(query_mixed * key_mixed)
    tl.store(losses + program, loss + tl.sum(query_other * key_other))

    # 2 A (B'B) and 2 B (A'A), in the student's columns.
    key_own *= 2 * own_scale * own_scale
    key_mixed *= -2 * own_scale * other_scale
    query_own *= 2
    query_mixed *= 2
    for start in range(0, length, TILE):
        at = start + tl.arange(0, TILE)
        counted = tl.load(rows + at, mask=at < length, other=0) != 0
        q = _load(query, at, own, own_row, counted, SIZE, WIDEN)
        t = _load(other_query, at, other, other_row, counted, OTHER_SIZE, WIDEN)
        gradient = _product(q, key_own, tl.zeros((TILE, WIDTH), tl.float32), SPLIT)
        gradient = _product(t, key_mixed, gradient, SPLIT)
        _store(for_query, at, own, out_row, gradient, length, SIZE)
        counted = tl.load(columns + at, mask=at < length, other=0) != 0
        k = _load(key, at, own, own_row, counted, SIZE, WIDEN)
        t = _load(other_key, at, other, other_row, counted, OTHER_SIZE, WIDEN)
        gradient = _product(k, query_own, tl.zeros((TILE, WIDTH), tl.float32), SPLIT)
        gradient = _product(t, query_mixed, gradient, SPLIT)
        _store(for_key, at, own, out_row, gradient, length, SIZE)


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
        """Queries and keys (batch, heads, length, size); masks (batch, length)."""
        query, key = _side_by_side(query, key)
        other_query, other_key = _side_by_side(other_query, other_key)
        batch, heads, length, size = query.shape
        # The sums can be too large for fp16; bf16 holds them, and half the bytes of fp32.
        kept = torch.bfloat16 if query.dtype == torch.bfloat16 else torch.float32
        shape = (batch, length, heads, size)  # as the projections want them back
        for_query, for_key = (query.new_empty(shape, dtype=kept).transpose(1, 2) for _ in range(2))
        losses = query.new_empty(batch * heads, dtype=torch.float32)
        settings = _settings(query, other_query)
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
            **score_shape(_is_narrow(settings, query), settings["WIDTH"], settings["OTHER_WIDTH"]),
            SPLIT=query.dtype == other_query.dtype == torch.bfloat16,
        )
        ctx.save_for_backward(for_query, for_key)
        ctx.dtype = query.dtype
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        for_query, for_key = ((grad * saved).to(ctx.dtype) for saved in ctx.saved_tensors)
        return for_query, for_key, None, None, None, None, None, None


# -------------------------------------------------------------------------------- relations
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
    left += batch * own_batch + head * own_head
    right += batch * own_batch + head * own_head
    other_left += batch * other_batch + head * other_head
    other_right += batch * other_batch + head * other_head
    own, other = tl.arange(0, WIDTH), tl.arange(0, OTHER_WIDTH)

    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = at < length
    counted = tl.load(rows + batch * length + at, mask=inside, other=0) != 0
    a = _load(left, at, own, own_row, counted, SIZE, WIDEN)
    b = _load(other_left, at, other, other_row, counted, OTHER_SIZE, WIDEN)
    largest = tl.full((TILE,), HIDDEN, tl.float32)
    other_largest = tl.full((TILE,), HIDDEN, tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    other_total = tl.zeros((TILE,), tl.float32)
    difference = tl.zeros((TILE,), tl.float32)
    for start in range(0, length, TILE):
        to = start + tl.arange(0, TILE)
        seen = tl.load(keys + batch * length + to, mask=to < length, other=0) != 0
        s = _scores(a, _load(right, to, own, own_row, seen, SIZE, WIDEN), seen, own_scale)
        t = _scores(b, _load(other_right, to, other, other_row, seen, OTHER_SIZE, WIDEN), seen, other_scale)
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
    left += batch * own_batch + head * own_head
    right += batch * own_batch + head * own_head
    other_left += batch * other_batch + head * other_head
    other_right += batch * other_batch + head * other_head
    gradients += batch * out_batch + head * out_head
    rows += batch * length
    keys += batch * length
    log_totals += program.to(tl.int64) * length
    other_log_totals += program.to(tl.int64) * length
    own, other = tl.arange(0, WIDTH), tl.arange(0, OTHER_WIDTH)

    mine = tl.program_id(1) * TILE + tl.arange(0, TILE)
    gradient = tl.zeros((TILE, WIDTH), tl.float32)
    for start in range(0, length, TILE):
        theirs = start + tl.arange(0, TILE)
        if OF_RIGHT:
            at, to = theirs, mine
        else:
            at, to = mine, theirs
        counted = tl.load(rows + at, mask=at < length, other=0) != 0
        seen = tl.load(keys + to, mask=to < length, other=0) != 0
        a = _load(left, at, own, own_row, counted, SIZE, WIDEN)
        b = _load(right, to, own, own_row, seen, SIZE, WIDEN)
        s = _scores(a, b, seen, own_scale)
        t = _scores(
            _load(other_left, at, other, other_row, counted, OTHER_SIZE, WIDEN),
            _load(other_right, to, other, other_row, seen, OTHER_SIZE, WIDEN),
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
    _store(gradients, mine, own, out_row, gradient, length, SIZE)


class RelationDivergence(torch.autograd.Function):
    """Sum of KL(softmax(c_t Pt_i . Qt_j) || softmax(c_s Ps_i . Qs_j)) over batch, heads and rows i.

    Tiles of scores are made anew for each gradient, as in Dao et al. 2022 (FlashAttention): only the
    softmaxes' totals, (batch, heads, length), are kept.
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
        """Student's and teacher's sides (batch, heads, length, size); masks (batch, length)."""
        left, right = _side_by_side(left, right)
        other_left, other_right = _side_by_side(other_left, other_right)
        rows, keys = rows.contiguous(), keys.contiguous()
        batch, heads, length, _ = left.shape
        settings = _settings(left, other_left)
        shape = relation_shape(_is_narrow(settings, left), settings["WIDTH"], settings["OTHER_WIDTH"])
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
