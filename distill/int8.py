"""Linear layers with 8-bit matrix products, for frozen encoders on a CPU.

CPUs with VNNI multiply 8-bit integers several times as fast as fp32; nearly every x86 server since 2019
has it, where AMX, for bf16, is rare. Weights have a scale for each output, activations a scale and a level
of zero for each token (Dettmers et al. 2022, arXiv:2208.07339: vector-wise and zeropoint quantisation),
found as they come: no calibration is needed, and a token's signal depends on its sequence alone. What lies
between the products of BERT's layers is done in one pass over memory (int8_rows.py).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

from distill.attention import Collector, is_of_keys
from distill.compiler import compiler
from distill.int8_rows import attend, attend_rows, gelu_rows, library, norm_rows_, round_rows, scale_rows_
from distill.read_places import is_part

LEVELS = 127  # of weights, to either side of zero
MIDDLE = 128  # subtracted from activations' levels in a product: VNNI multiplies unsigned by signed


def check_int8(device: torch.device, setting: str = "teacher.precision") -> None:
    """Refuse hardware that would be slow, or wrong: without VNNI products are summed in 16 bits."""
    if device.type != "cpu":
        raise ValueError(f"{setting}: int8 is for CPUs; leave it out on this GPU")
    if not has_int8_units(device):
        raise ValueError(
            f"{setting}: int8 needs a CPU with AVX-512 VNNI (avx512_vnni in /proc/cpuinfo); leave it out"
        )
    try:
        library()
    except ValueError as error:
        raise ValueError(f"{setting}: int8: {error}; or give fp32") from None


def has_int8_units(device: torch.device) -> bool:
    """Whether 8-bit products are faster than fp32 ones: CPUs with AVX-512 VNNI."""
    return device.type == "cpu" and torch.cpu._is_vnni_supported()


def has_int8(device: torch.device) -> bool:
    """Whether a teacher can run in 8 bits here: the units, and a compiler for what lies between."""
    return has_int8_units(device) and compiler() is not None


class Rounded(NamedTuple):
    """Activations in 8 bits: levels (tokens, width), factors (tokens, 2), and the shape that they had."""

    levels: Tensor
    factors: Tensor
    shape: torch.Size


class Rounding:
    """Rounds activations to 8 bits; keeps the last result, for queries, keys and values share an input."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, Rounded] | None = None

    def __call__(self, inputs: Tensor) -> Rounded:
        """(..., width) in fp32, rounded."""
        if self._last and self._last[0] is inputs and self._last[1] == inputs._version:
            return self._last[2]
        return self.keep(inputs, *round_rows(inputs.reshape(-1, inputs.shape[-1])))

    def keep(self, inputs: Tensor, levels: Tensor, factors: Tensor) -> Rounded:
        """Remember what these activations are in 8 bits."""
        rounded = Rounded(levels, factors, inputs.shape)
        self._last = inputs, inputs._version, rounded
        return rounded


class Int8Linear(nn.Module):
    """A frozen linear layer, fp32 out, whose product is one of 8-bit integers, summed in 32 bits."""

    def __init__(self, linear: nn.Linear, rounding: Rounding):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = row_scales(weight)
        outputs, inputs = weight.shape
        levels = (weight / scale).round_()
        # Laid out for inputs of such a shape; others are multiplied too.
        self.packed = torch.ops.onednn.qlinear_prepack(levels.to(torch.int8), [1024, inputs])
        self.scale = scale[:, 0].contiguous()
        self.sums = levels.sum(1) * self.scale
        self.zeros = torch.zeros(outputs, dtype=torch.int64)
        self.bias = torch.zeros(outputs) if linear.bias is None else linear.bias.detach().float()
        self.rounding = rounding

    def product(self, rounded: Rounded) -> Tensor:
        """(tokens, outputs) without bias, still to be scaled by the tokens' factors."""
        return torch.ops.onednn.qlinear_pointwise(
            rounded.levels,
            1.0,  # their scale
            MIDDLE,  # their level of zero
            self.packed,
            self.scale,
            self.zeros,
            None,  # bias
            1.0,  # the output's scale,
            0,  # level of zero
            torch.float32,  # and dtype
            "none",  # nothing is fused behind the product
            [],
            "",
        )

    def forward(self, inputs: Tensor | Rounded) -> Tensor:
        """(..., inputs), in fp32 or rounded, to (..., outputs)."""
        rounded = inputs if isinstance(inputs, Rounded) else self.rounding(inputs)
        outputs = scale_rows_(self.product(rounded), rounded.factors, self.sums, self.bias)
        return outputs.view(*rounded.shape[:-1], outputs.shape[-1])


class Int8SelfAttention(nn.Module):
    """A BERT's attention up to its output projection, in one pass over the products that go into it."""

    def __init__(self, plain: nn.Module):
        super().__init__()
        self.plain: Any = plain

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None = None, **others: Any
    ) -> tuple[Tensor, Tensor | None]:
        """(sequences, length, width) to the same; the mask, (sequences, 1, queries, keys), is of keys."""
        plain = self.plain
        if self.training or plain.is_causal or not is_of_keys(attention_mask, *hidden.shape[:2]):
            return plain(hidden, attention_mask, **others)
        sides = plain.query, plain.key, plain.value
        rounded = sides[0].rounding(hidden)
        products = [side.product(rounded) for side in sides]
        collector: Collector | None = getattr(plain, "distillery_collector", None)
        # A loss wants this layer's queries, keys and values; else they are scaled only within attend_rows.
        scaled = collector is not None and collector.wants_next()
        if scaled:
            for side, product in zip(sides, products, strict=True):
                scale_rows_(product, rounded.factors, side.sums, side.bias)
        products = [product.view(hidden.shape) for product in products]
        heads = plain.num_attention_heads
        if collector is not None and collector.wanted:
            query, key, value = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in products)
            collector.take(query, key, value, plain.scaling)  # counts layers, wanted or not
        mask = None if attention_mask is None else attention_mask[:, 0, 0].contiguous()
        if scaled:
            return attend(*products, mask, plain.scaling, heads), None
        sums, biases = [side.sums for side in sides], [side.bias for side in sides]
        out, *own = attend_rows(*products, sums, biases, rounded.factors, mask, plain.scaling, heads)
        sides[0].rounding.keep(out, *own)
        return out, None


class Int8Intermediate(nn.Module):
    """The first half of a BERT's feed-forward: its linear layer and GELU, out in 8 bits."""

    def __init__(self, plain: nn.Module):
        super().__init__()
        self.dense: Any = plain.dense

    def forward(self, inputs: Tensor) -> Rounded:
        """(..., inputs) to (..., outputs)."""
        rounded = self.dense.rounding(inputs)
        product = self.dense.product(rounded)
        levels, factors = gelu_rows(product, rounded.factors, self.dense.sums, self.dense.bias)
        return Rounded(levels, factors, torch.Size([*inputs.shape[:-1], product.shape[-1]]))


class Int8Output(nn.Module):
    """The end of a BERT's attention or feed-forward: linear layer, sum with its input, layer norm."""

    def __init__(self, plain: nn.Module):
        super().__init__()
        self.plain: Any = plain

    def forward(self, inputs: Tensor | Rounded, residual: Tensor) -> Tensor:
        """(..., inputs), in fp32 or rounded, and (..., outputs) to (..., outputs)."""
        if self.training:  # a teacher with its dropout on
            return self.plain(inputs, residual)
        dense = self.plain.dense
        rounded = inputs if isinstance(inputs, Rounded) else dense.rounding(inputs)
        outputs = dense.product(rounded)
        norm, factors = self.plain.LayerNorm, rounded.factors
        own = norm_rows_(outputs, factors, dense.sums, dense.bias, residual, norm)
        outputs = outputs.view(residual.shape)
        dense.rounding.keep(outputs, *own)
        return outputs


def row_scales(rows: Tensor) -> Tensor:
    """What one level stands for in each row, (rows, 1): its largest magnitude has the last level."""
    return rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * LEVELS) / LEVELS


def quantise(model: nn.Module) -> None:
    """Replace every linear layer, and in BERT's families what lies between them.

    Embeddings, norms and the scores of attention are computed in fp32.
    """
    rounding = Rounding()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child, rounding))
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            fused = next((kind for part, kind in FUSED.items() if is_part(child, part)), None)
            if fused and (fused is not Int8Intermediate or _is_gelu(child)):
                setattr(parent, name, fused(child).train(child.training))


FUSED: dict[str, type[nn.Module]] = {
    "SelfAttention": Int8SelfAttention,
    "Intermediate": Int8Intermediate,
    "SelfOutput": Int8Output,
    "Output": Int8Output,
}


def _is_gelu(intermediate: Any) -> bool:
    """Whether a feed-forward's activation is GELU with erf."""
    return isinstance(intermediate.intermediate_act_fn, GELUActivation)


def _flops(inputs: torch.Size, *rest: Any, **kwargs: Any) -> int:
    packed = rest[2]
    return 2 * math.prod(inputs) * packed[-1]


def _attention_flops(query: torch.Size, *rest: Any, **kwargs: Any) -> int:
    sequences, length, width = query
    return 4 * sequences * length * length * width


# For torch's counter, which doesn't know them.
FLOPS = {
    torch.ops.onednn.qlinear_pointwise: _flops,
    torch.ops.distillery.attend_rows: _attention_flops,
    torch.ops.distillery.attend: _attention_flops,
}
