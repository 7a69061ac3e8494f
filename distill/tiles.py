"""Tiles of a head's rows, for Triton kernels: how they are read, written and multiplied.

Queries and keys are read where they lie, (batch, heads, length, size) in any strides. Head sizes need not
be powers of two: a tile is as wide as the next one, its other columns read as zeros.
"""

# mypy: allow-incomplete-defs

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret  # on a CPU, where bf16 has no matrix product


def width_of(size: int) -> int:
    """Columns of a tile for heads of so many: a power of two, and what a matrix product takes."""
    return max(16, triton.next_power_of_2(size))


def compiled_in(own: Tensor, other: Tensor) -> dict[str, Any]:
    """The kernels' compile-time constants: head sizes, widths of tiles, whether tiles become fp32."""
    size, other_size = own.shape[-1], other.shape[-1]
    return {
        "SIZE": size,
        "OTHER_SIZE": other_size,
        "WIDTH": width_of(size),
        "OTHER_WIDTH": width_of(other_size),
        "WIDEN": own.dtype != other.dtype or INTERPRETED,
    }


def is_narrow(own: Tensor, other: Tensor) -> bool:
    """Whether tiles hold 16 bits a number."""
    return INTERPRETED or (own.dtype == other.dtype and own.element_size() == 2)


def with_shared_strides(*parts: Tensor) -> tuple[Tensor, ...]:
    """The tensors as they are where they share strides and rows are dense, else copies that do."""
    first = parts[0].stride()
    if first[-1] == 1 and all(part.stride() == first for part in parts):
        return parts
    return tuple(part.contiguous() for part in parts)


@triton.jit
def of_head(base, batch, head, batch_stride, head_stride):
    """Where one head's rows begin."""
    return base + batch * batch_stride + head * head_stride


@triton.jit
def counted_of(mask, at, length):
    """Which of the positions count: a slice of a sequence's mask."""
    return tl.load(mask + at, mask=at < length, other=0) != 0


@triton.jit
def load_rows(base, at, stride, counted, SIZE: tl.constexpr, WIDTH: tl.constexpr, WIDEN: tl.constexpr):
    """Rows of one head, (rows, WIDTH); zeros in rows that don't count and columns past the head."""
    columns = tl.arange(0, WIDTH)
    keep = counted[:, None] & (columns < SIZE)[None, :]
    tile = tl.load(base + at[:, None] * stride + columns[None, :], mask=keep, other=0.0)
    return tile.to(tl.float32) if WIDEN else tile


@triton.jit
def store_rows(base, at, stride, value, length, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Write rows of one head, in the dtype that lies there."""
    columns = tl.arange(0, WIDTH)
    keep = (at < length)[:, None] & (columns < SIZE)[None, :]
    place = base + at[:, None] * stride + columns[None, :]
    tl.store(place, value.to(base.dtype.element_ty), mask=keep)


@triton.jit
def product(rows, matrix, total, SPLIT: tl.constexpr):
    """total + rows @ matrix for an fp32 matrix: as two bf16 parts, or by three tf32 products."""
    if SPLIT:
        high = matrix.to(tl.bfloat16)
        low = (matrix - high.to(tl.float32)).to(tl.bfloat16)
        total = tl.dot(rows, high.to(rows.dtype), total)
        return tl.dot(rows, low.to(rows.dtype), total)
    return tl.dot(rows.to(tl.float32), matrix, total, input_precision="tf32x3")
