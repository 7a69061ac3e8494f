"""NEZHA (Wei et al. 2019, arXiv:1909.00204): BERT with functional relative positions.

transformers has dropped it; this is what differs from BERT. The vectors of relative positions are
fixed sinusoids, clipped at a largest distance, added to keys and values alike. Weights load under
the names of both published kinds: `bert.` (Huawei's) and `nezha.` (Hugging Face's).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
)
from transformers.conversion_mapping import WeightRenaming, register_checkpoint_conversion_mapping
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertSelfAttention,
)


class NezhaConfig(BertConfig):
    """BERT's configuration, with the distance beyond which positions are alike."""

    model_type = "nezha"

    def __init__(self, max_relative_position: int = 64, **kwargs: Any):
        self.max_relative_position = max_relative_position
        super().__init__(**kwargs)


@lru_cache(maxsize=8)
def _distances(width: int, largest: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The vectors of the distances from -largest to largest."""
    places = torch.arange(2 * largest + 1.0)[:, None]
    rates = torch.exp(torch.arange(0, width, 2.0) * (-math.log(10000.0) / width))
    table = torch.zeros(2 * largest + 1, width)
    table[:, 0::2] = torch.sin(places * rates)
    table[:, 1::2] = torch.cos(places * rates[: width // 2])
    return table.to(device, dtype)


def relative_positions(
    length: int, width: int, largest: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The vectors of all pairs of positions, (length, length, width): entry i, j is that of j - i."""
    steps = torch.arange(length, device=device)
    # The tensors of an export are symbolic: none of them may be cached.
    distances = _distances.__wrapped__ if torch.compiler.is_exporting() else _distances
    table = distances(width, largest, device, dtype)
    return table[(steps[None, :] - steps[:, None]).clamp(-largest, largest) + largest]


class NezhaSelfAttention(BertSelfAttention):
    """Scores (q_i . (k_j + r_ij)) / sqrt(d), outputs sum_j p_ij (v_j + r_ij)."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (batch, length, width), a mask that broadcasts to the scores."""
        shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        parts = (self.query, self.key, self.value)
        query, key, value = (part(hidden_states).view(shape).transpose(1, 2) for part in parts)
        largest = self.config.max_relative_position
        between = relative_positions(shape[1], self.attention_head_size, largest, query.device, query.dtype)
        scores = (query @ key.mT + torch.einsum("bhid,ijd->bhij", query, between)) * self.scaling
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        elif attention_mask is not None:
            scores = scores + attention_mask
        weights = self.dropout(scores.softmax(dim=-1))
        output = weights @ value + torch.einsum("bhij,ijd->bhid", weights, between)
        if collector := getattr(self, "distillery_collector", None):
            collector.take(query, key, value, self.scaling)
        return output.transpose(1, 2).flatten(2), weights


class NezhaEmbeddings(BertEmbeddings):
    """Words and segments, without positions."""

    def __init__(self, config: NezhaConfig):
        super().__init__(config)
        del self.position_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Embeddings (batch, length, width)."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if token_type_ids is None:
            token_type_ids = torch.zeros(words.shape[:-1], dtype=torch.long, device=words.device)
        return self.dropout(self.LayerNorm(words + self.token_type_embeddings(token_type_ids)))


class NezhaModel(BertModel):
    """The encoder."""

    config_class = NezhaConfig

    def __init__(self, config: NezhaConfig, add_pooling_layer: bool = True):
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        self.embeddings = NezhaEmbeddings(config)
        for number, layer in enumerate(self.encoder.layer):
            layer.attention.self = NezhaSelfAttention(config, layer_idx=number)
        self.post_init()


class NezhaForMaskedLM(BertForMaskedLM):
    """The encoder with a masked-language-model head."""

    config_class = NezhaConfig

    def __init__(self, config: NezhaConfig):
        super().__init__(config)
        self.bert = NezhaModel(config, add_pooling_layer=False)
        self.post_init()


class NezhaForSequenceClassification(BertForSequenceClassification):
    """The encoder with a classifier on the pooled first state."""

    config_class = NezhaConfig

    def __init__(self, config: NezhaConfig):
        super().__init__(config)
        self.bert = NezhaModel(config)
        self.post_init()


AutoConfig.register(NezhaConfig.model_type, NezhaConfig)
AutoModel.register(NezhaConfig, NezhaModel)
AutoModelForMaskedLM.register(NezhaConfig, NezhaForMaskedLM)
AutoModelForSequenceClassification.register(NezhaConfig, NezhaForSequenceClassification)
register_checkpoint_conversion_mapping(NezhaConfig.model_type, [WeightRenaming(r"^nezha\.", "bert.")])
