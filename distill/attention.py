"""Queries, keys and values of every layer, without attention maps.

An attention function registered with transformers computes the output, by SDPA as usual or for a frozen
encoder on a CPU in one pass over memory (int8_rows.py), and hands the queries, keys and values to a
collector, so that attention losses need no (batch, heads, length, length) tensor. It serves every encoder
that uses the attention interface.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distill.int8_rows import attend, is_quick
from distill.read_places import is_part

NAME = "distillery"
MULTIPLE = 8  # a GPU's fused attention kernels take head sizes that are multiples of it


class Heads(NamedTuple):
    """What one layer attends with: (batch, heads, length, head size) each, the query not yet scaled."""

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float

    def sides(self, kind: str) -> tuple[Tensor, Tensor]:
        """The two factors of a relation, by their letters: qq, kk, vv or qk."""
        by_letter = {"q": self.query, "k": self.key, "v": self.value}
        return by_letter[kind[0]], by_letter[kind[1]]


class Collector:
    """Takes queries, keys and values of the layers that are wanted; layers count from 1 as they run."""

    def __init__(self) -> None:
        self.wanted: set[int] = set()
        self.layers: dict[int, Heads] = {}
        self.passed = 0

    def wants_next(self) -> bool:
        """Whether the layer that runs next is wanted."""
        return self.passed + 1 in self.wanted

    def take(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> None:
        """One more layer has run."""
        self.passed += 1
        if self.passed in self.wanted:
            shared = query.shape[1] // key.shape[1]  # heads that attend to the same keys, as in Llama
            if shared > 1:
                key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
            self.layers[self.passed] = Heads(query, key, value, scaling)


def _capturing_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    size = query.shape[-1]
    if kwargs.get("scaling") is None:
        kwargs["scaling"] = size**-0.5
    collector = getattr(module, "distillery_collector", None)
    if collector is not None and collector.wanted:
        collector.take(query, key, value, kwargs["scaling"])
    if _fits_one_pass(module, query, attention_mask) and not kwargs.get("dropout"):
        rows = (part.transpose(1, 2).flatten(2).contiguous() for part in (query, key, value))
        keys = None if attention_mask is None else attention_mask[:, 0, 0].contiguous()
        output = attend(*rows, keys, kwargs["scaling"], query.shape[1])
        return output.unflatten(-1, (-1, size)), None
    if _is_slow(query):
        query, key, value = (pad(part, (0, -size % MULTIPLE)) for part in (query, key, value))
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output[..., :size], None


def _fits_one_pass(module: torch.nn.Module, query: Tensor, mask: Tensor | None) -> bool:
    """Whether a layer attends by `attend`: one of BERT's kind, in fp32 on a CPU, without gradients."""
    if query.device.type != "cpu" or query.dtype != torch.float32 or torch.is_grad_enabled():
        return False
    known = is_part(module, "SelfAttention") and not module.is_causal
    return known and is_of_keys(mask, query.shape[0], query.shape[2]) and is_quick()


def is_of_keys(mask: Tensor | None, sequences: int, length: int) -> bool:
    """Whether a mask, (sequences, 1, queries, keys), is the same for all queries of a sequence."""
    if mask is None:
        return True
    if torch.compiler.is_compiling() or mask.dtype != torch.bool:
        return False
    return mask.shape == (sequences, 1, length, length) and torch.equal(
        mask, mask[:, :, :1].expand_as(mask)
    )


def _is_slow(query: Tensor) -> bool:
    """Whether a GPU's fused kernels take heads of this size only with zeros behind.

    What serves them otherwise, where there is a mask, writes the scores of all pairs to memory, in fp32.
    """
    return query.is_cuda and query.shape[-1] % MULTIPLE != 0


def _mask(
    *, attention_mask: Tensor | None = None, allow_is_bidirectional_skip: bool = False, **kwargs: Any
) -> Tensor | None:
    """SDPA's mask, or None where it would hide nothing. To know that, transformers reads the mask, which
    on a GPU would wait for all work queued before: there it is always given.
    """
    looks = attention_mask is None or attention_mask.device.type == "cpu"
    skip = allow_is_bidirectional_skip and looks
    return sdpa_mask(attention_mask=attention_mask, allow_is_bidirectional_skip=skip, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(NAME, _capturing_sdpa)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _mask)


def install(model: PreTrainedModel) -> Collector:
    """Make `model` report its queries, keys and values to the collector that is returned."""
    collector = Collector()
    model.set_attn_implementation(NAME)
    for module in model.modules():
        module.distillery_collector = collector
    return collector


def needs_no_mask(model: PreTrainedModel) -> bool:
    """Whether a model attends by the function of this module, and may be called without a mask:
    transformers' own may, a class of the user's perhaps not.
    """
    ours = getattr(model.config, "_attn_implementation", None) == NAME
    return ours and type(model).__module__.startswith("transformers.models.")


@contextmanager
def collecting(collector: Collector, wanted: Iterable[int]) -> Iterator[dict[int, Heads]]:
    """Queries, keys and values of the one forward pass made inside, by layer."""
    collector.wanted, collector.layers, collector.passed = set(wanted), {}, 0
    try:
        yield collector.layers
    finally:
        collector.wanted, collector.layers = set(), {}
