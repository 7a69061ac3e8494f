"""Queries and keys of every layer, without attention maps.

An attention function registered with transformers computes the output by SDPA as usual and hands
the queries and keys to a collector, so that attention losses need no (batch, heads, length,
length) tensor. It serves every encoder that uses the attention interface.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "distillery"
QueryKey = tuple[Tensor, Tensor]  # (batch, heads, length, head size) each, query already scaled


class Collector:
    """Takes queries and keys in the order of the layers while it is open."""

    def __init__(self) -> None:
        self.layers: list[QueryKey] = []
        self.open = False


def _capturing_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    collector = getattr(module, "distillery_collector", None)
    if collector is not None and collector.open:
        scaling = kwargs.get("scaling")
        scaled = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        collector.layers.append((scaled, key))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(NAME, _capturing_sdpa)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def install(model: PreTrainedModel) -> Collector:
    """Make `model` report its queries and keys to the collector that is returned."""
    collector = Collector()
    model.set_attn_implementation(NAME)
    for module in model.modules():
        module.distillery_collector = collector
    return collector


@contextmanager
def collecting(collector: Collector) -> Iterator[list[QueryKey]]:
    """Queries and keys of the forward passes made inside, layer by layer."""
    collector.layers, collector.open = [], True
    try:
        yield collector.layers
    finally:
        collector.open, collector.layers = False, []
