"""Which fused parts a run uses, and why: the one file that knows apex, and whether Triton is there.

Every part has a plain twin that gives the same result within the dtype's rounding; this file only says
which of the two a device gets. NVIDIA's apex is used where it is installed (the `apex` on PyPI is another
project); it serves CUDA alone.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import nn

from distill.int8_rows import is_quick
from distill.products import by_onednn, mkl_is_slow

AMPERE = (8, 0)  # the first with bf16 matrix units, and with the shared memory that the kernels need


@dataclass(frozen=True)
class Choice:
    """What serves one part on this machine."""

    part: str
    chosen: str
    why: str


@functools.cache
def kernel(module: str, kind: str) -> ModuleType | None:
    """A module of Triton kernels for devices of a kind (`cuda`, `cpu`); None where its twin serves."""
    if kind != "cuda" or torch.cuda.get_device_capability() < AMPERE:
        return None
    try:
        return importlib.import_module(f"distill.{module}")
    except (ImportError, AttributeError):  # no Triton, or one that is too old
        return None


@functools.cache
def apex(module: str, name: str) -> type | None:
    """A class of NVIDIA's apex, as apex(`optimizers`, `FusedAdam`); None without a GPU or apex."""
    if not torch.cuda.is_available():
        return None
    try:
        return getattr(importlib.import_module(f"apex.{module}"), name, None)
    except ImportError:
        return None


def fuse_layer_norms(model: nn.Module) -> None:
    """Put apex's FusedLayerNorm, where there is one, in the place of torch's, with the same weights."""
    fused = apex("normalization", "FusedLayerNorm")
    if fused is None:
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.LayerNorm and child.weight is not None and child.bias is not None:
                norm = fused(child.normalized_shape, eps=child.eps)
                norm.weight, norm.bias = child.weight, child.bias
                setattr(parent, name, norm)


def choices() -> list[Choice]:
    """Every part that has a fused form, for the device that a run would use here."""
    gpu = torch.cuda.is_available()
    kind = "cuda" if gpu else "cpu"
    absent = "NVIDIA's apex is not installed" if gpu else "no GPU"
    triton = kernel("score_kernel", kind) is not None
    lacking = "Triton is missing or too old, or the GPU is" if gpu else "no GPU"
    why = "a GPU and Triton are here" if triton else lacking
    return [
        Choice("attention and relation losses", "Triton kernels" if triton else "tiled torch", why),
        _apex("AdamW", "optimizers", "FusedAdam", "fused AdamW of torch", absent),
        _apex("LAMB", "optimizers", "FusedLAMB", "multi-tensor LAMB of distill", absent),
        _apex("layer norm", "normalization", "FusedLayerNorm", "native layer norm of torch", absent),
        _products(),
        _frozen_attention(),
    ]


def _products() -> Choice:
    part = "fp32 products on the CPU"
    if by_onednn():
        return Choice(part, "oneDNN", "on AMD's CPUs MKL stops at AVX2")
    why = "oneDNN would not be exact, or there is no AVX-512" if mkl_is_slow() else "no AMD CPU with MKL"
    return Choice(part, "as torch chooses", why)


def _frozen_attention() -> Choice:
    part = "fp32 attention of frozen encoders on the CPU"
    if is_quick():
        return Choice(part, "one pass of distill", "there is AVX-512, and a C++ compiler")
    return Choice(part, "SDPA of torch", "no AVX-512, or no C++ compiler that works")


def _apex(part: str, module: str, name: str, otherwise: str, absent: str) -> Choice:
    if apex(module, name) is None:
        return Choice(part, otherwise, absent)
    return Choice(part, f"apex {name}", "NVIDIA's apex is installed")
