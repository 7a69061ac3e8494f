"""What lies between the 8-bit products of a frozen encoder on a CPU, each in one pass over memory.

torch takes four to six passes over these rows, and its compiler two, for what fits between a read and a
write of each row (int8_rows.cpp). Rows are (tokens, width) in fp32. A level q of a token stands for the
number f (q - z), z being the token's level of zero. Its factors, a row of (tokens, 2), are f and
f (128 - z): to scale a product P of (q - 128) and weights w is to make it f P + f (128 - z) sum(w).
Attention in fp32 goes the same way.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch import library as operators

from distill.compiler import compiler

SOURCE = Path(__file__).with_suffix(".cpp")
# To set errno and to raise floating-point exceptions, as C++ asks, would keep loops from being vectorised.
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]


@functools.cache
def library() -> ctypes.CDLL:
    """The functions, compiled in a second for this CPU, once in a process: nothing can be stale.

    Its threads are torch's own, whose OpenMP library is loaded already. It lies where DeepSpeed's op does,
    for what lies in /tmp may not be run everywhere. Raises ValueError where the compiler fails.
    """
    words = compiler()
    if words is None:
        raise ValueError("no C++ compiler, by $CXX or as c++: apt install g++")
    try:
        return _compiled(words)
    except OSError as error:
        raise ValueError(f"{SOURCE.name} can't be compiled ({error}); see TORCH_EXTENSIONS_DIR") from None


def _compiled(words: list[str]) -> ctypes.CDLL:
    if place := os.environ.get("TORCH_EXTENSIONS_DIR"):
        Path(place).mkdir(parents=True, exist_ok=True)
    # NFS keeps what is loaded under another name in its folder until the process ends.
    with tempfile.TemporaryDirectory(prefix="distillery-", dir=place, ignore_cleanup_errors=True) as folder:
        target = Path(folder, "int8_rows.so")
        command = [*words, *FLAGS, str(SOURCE), "-o", str(target)]
        # In a session of its own, for a terminal's Ctrl-C asks a training to stop after its next step.
        done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
        if done.returncode:
            raise ValueError(
                f"{shlex.join(words)} can't compile {SOURCE.name}: {done.stderr.strip()[:400]}"
            )
        try:
            return ctypes.CDLL(str(target))
        except OSError as error:
            raise ValueError(
                f"what is compiled can't be loaded ({error}); set TORCH_EXTENSIONS_DIR"
            ) from None


@functools.cache
def is_quick() -> bool:
    """Whether attention in fp32 goes by `attend`: where there is AVX-512, for which it is written, and
    where it compiles.
    """
    if compiler() is None or not torch.cpu._is_avx512_supported():
        return False
    try:
        library()
    except ValueError:
        return False
    return True


def _call(name: str, *arguments: Tensor | float | None, counts: Sequence[int]) -> None:
    given = [
        ctypes.c_float(each)
        if isinstance(each, float)
        else ctypes.c_void_p(None if each is None else each.data_ptr())
        for each in arguments
    ]
    getattr(library(), name)(*given, *map(ctypes.c_int64, counts))


def _empty_levels_and_factors(shape: torch.Size) -> tuple[Tensor, Tensor]:
    return torch.empty(shape, dtype=torch.uint8), torch.empty(shape[0], 2)


def round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in 8 bits, and their factors: levels span a row's numbers and zero."""
    levels, factors = _empty_levels_and_factors(rows.shape)
    _call("round_rows", rows.contiguous(), levels, factors, counts=rows.shape)
    return levels, factors


def scale_rows_(rows: Tensor, factors: Tensor, sums: Tensor, bias: Tensor) -> Tensor:
    """In place: products with weights of these sums, (width,), scaled, plus a bias, (width,)."""
    _call("scale_rows", rows, factors, sums, bias, counts=rows.shape)
    return rows


def gelu_rows(rows: Tensor, factors: Tensor, sums: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """GELU of the scaled rows, with erf, in 8 bits and with new factors."""
    levels, new_factors = _empty_levels_and_factors(rows.shape)
    _call("gelu_rows", rows, factors, sums, bias, levels, new_factors, counts=rows.shape)
    return levels, new_factors


def norm_rows_(
    rows: Tensor,
    factors: Tensor,
    sums: Tensor,
    bias: Tensor,
    residual: Tensor,
    norm: torch.nn.LayerNorm,
) -> tuple[Tensor, Tensor]:
    """In place: the layer norm of the scaled rows plus a residual; returns it in 8 bits, with factors."""
    levels, new_factors = _empty_levels_and_factors(rows.shape)
    others = residual.reshape(rows.shape).contiguous()
    given = (rows, factors, sums, bias, others, norm.weight, norm.bias, norm.eps, levels, new_factors)
    _call("norm_rows", *given, counts=rows.shape)
    return levels, new_factors


@operators.custom_op("distillery::attend_rows", mutates_args=())
def attend_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sums: Sequence[Tensor],
    biases: Sequence[Tensor],
    factors: Tensor,
    mask: Tensor | None,
    scaling: float,
    heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of every head, softmax(q k' scaling) v, and it in 8 bits with its factors.

    Args:
        query: Products still to be scaled, (sequences, length, width).
        key: The same.
        value: The same.
        sums: Of the weights of the three, (width,) each.
        biases: What is added to the three then, (width,) each.
        factors: The tokens', (tokens, 2).
        mask: The keys that are there, bool (sequences, length); None: all. A sequence has one at least.
        scaling: Of the products of queries and keys.
        heads: How many lie side by side in a row.
    """
    sequences, length, width = query.shape
    out = torch.empty_like(query)
    levels, new_factors = _empty_levels_and_factors(torch.Size([sequences * length, width]))
    given = (query, key, value, *sums, *biases, factors, mask, scaling, out, levels, new_factors)
    _call("attend_rows", *given, counts=(sequences, length, heads, width // heads))
    return out, levels, new_factors


@operators.custom_op("distillery::attend", mutates_args=())
def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, heads: int
) -> Tensor:
    """The same of queries, keys and values as they are; nothing in 8 bits."""
    sequences, length, width = query.shape
    out = torch.empty_like(query)
    unscaled = [None] * 7  # no sums, biases or factors
    given = (query, key, value, *unscaled, mask, scaling, out, None, None)
    _call("attend_rows", *given, counts=(sequences, length, heads, width // heads))
    return out


attend.register_fake(lambda query, *others: torch.empty_like(query))
