"""Students of whole words: BiLSTMs and convolutions over word vectors, as Hugging Face models.

A folder of theirs holds config.json, model.safetensors and tokenizer.json, and loads with
`AutoModelForSequenceClassification.from_pretrained` once this module is imported. Kinds:

    bilstm         last states of a BiLSTM (Tang et al. 2019, arXiv:1903.12136)
    bilstm_max     a BiLSTM's outputs through a layer each, their maximum over time
    mean_bilstm    the mean word vector as the one time step of a BiLSTM
    cnn            convolutions of widths 2 to 6, maximum over time (Kim 2014)
    densenet_cnn   densely connected convolutions, then those of Kim
    densenet_dsa   the same, then dynamic self-attention (Yoon et al. 2018, arXiv:1808.07383)

Pairs of texts are read one by one; the classifier sees u, v, |u - v| and u * v.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class WordModelConfig(PretrainedConfig):
    """The shape of a word-level student.

    Args:
        kind: One of ENCODERS.
        vocab_size: Words.
        embedding_size: Width of the word vectors.
        pair: Whether examples are pairs of texts.
        frozen: Whether the word vectors stay as they are.
    """

    model_type = "distillery_words"

    def __init__(
        self,
        kind: str = "bilstm",
        vocab_size: int = 1000,
        embedding_size: int = 300,
        pair: bool = False,
        frozen: bool = False,
        **kwargs: Any,
    ):
        self.kind, self.pair, self.frozen = kind, pair, frozen
        self.vocab_size, self.embedding_size = vocab_size, embedding_size
        self.type_vocab_size = 2  # segments are read
        super().__init__(**kwargs)


class PaddedLstm(nn.Module):
    """A BiLSTM over the real positions of padded sequences, which come before the padding.

    Either direction is an LSTM of its own over the padded batch, the second over rows turned around up to
    their last token: packed sequences would go step by step, at a backward cost quadratic in the length on
    a CPU, and would need the lengths on the host.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.onward = nn.LSTM(width, hidden, batch_first=True)
        self.back = nn.LSTM(width, hidden, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (batch, length, 2 hidden) and both directions' last states (batch, 2 hidden).

        Args:
            x: (batch, length, width).
            mask: (batch, length), 1 at real positions, at least one a row; outputs elsewhere mean nothing.
        """
        last = mask.sum(1, keepdim=True) - 1
        turned = (last - torch.arange(x.shape[1], device=x.device)).clamp(min=0)
        onward, back = self.onward(x)[0], self.back(_at(x, turned))[0]
        ends = torch.cat([_at(onward, last), _at(back, last)], dim=-1)[:, 0]
        return torch.cat([onward, _at(back, turned)], dim=-1), ends


def _at(x: Tensor, places: Tensor) -> Tensor:
    """Each row of (batch, length, width) at its places, (batch, number): (batch, number, width)."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


class _Encoder(nn.Module, ABC):
    """What a kind of student does between word vectors and classifier.

    Attributes:
        out_features: Width of what `head` returns.
    """

    out_features: int

    @abstractmethod
    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Word vectors (batch, length, width) of one text each to features (batch, features)."""

    @abstractmethod
    def head(self, features: Tensor) -> Tensor:
        """Features of one text, or of a pair joined, to what the classifier sees."""


class BiLstm(_Encoder):
    """300 units a direction; a layer of 400 with ReLU and dropout 0.15 before the classifier."""

    def __init__(self, width: int, texts: int):
        super().__init__()
        self.lstm = PaddedLstm(width, 300)
        self.dense = nn.Linear(600 * texts, 400)
        self.dropout = nn.Dropout(0.15)
        self.out_features = 400

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.lstm(x, mask)[1]

    def head(self, features: Tensor) -> Tensor:
        return self.dropout(functional.relu(self.dense(features)))


class BiLstmMax(_Encoder):
    """Every time step through a layer of 192 with ReLU; the maximum over real time steps."""

    def __init__(self, width: int, texts: int):
        super().__init__()
        self.lstm = PaddedLstm(width, 300)
        self.dense = nn.Linear(600, 192)
        self.out_features = 192 * texts

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        outputs, _ = self.lstm(x, mask)
        return functional.relu(_max_over_time(self.dense(outputs), mask))

    def head(self, features: Tensor) -> Tensor:
        return features


class MeanBiLstm(_Encoder):
    """The mean of the word vectors, one time step of a BiLSTM of 768 units a direction."""

    def __init__(self, width: int, texts: int):
        super().__init__()
        self.lstm = nn.LSTM(width, 768, batch_first=True, bidirectional=True)
        self.dense = nn.Linear(1536 * texts, 192)
        self.out_features = 192

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.lstm(mean[:, None])[0][:, 0]

    def head(self, features: Tensor) -> Tensor:
        return functional.relu(self.dense(features))


class _Convolutions(nn.Module):
    """Convolutions of several widths, ReLU, maximum over time: (batch, 256 x widths)."""

    def __init__(self, width: int, kernels: tuple[int, ...]):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(width, 256, kernel) for kernel in kernels)
        self.longest = max(kernels)
        self.out_features = 256 * len(kernels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        # Room for the widest kernel to begin at every real position: padding then changes nothing.
        x = functional.pad((x * mask[..., None]).mT, (0, self.longest - 1))  # (batch, width, length + ...)
        maxima = [_max_over_time(convolution(x).mT, mask) for convolution in self.convolutions]
        return functional.relu(torch.cat(maxima, dim=-1))  # of the maxima alone: it keeps the order


class Cnn(_Encoder):
    """Dropout 0.2, kernels 2 to 6, 256 each, norm, dropout, a linear layer of 256, norm, dropout."""

    def __init__(self, width: int, texts: int):
        super().__init__()
        self.dropout = nn.Dropout(0.2)
        self.convolutions = _Convolutions(width, (2, 3, 4, 5, 6))
        features = self.convolutions.out_features * texts
        self.layers = nn.Sequential(
            _Norm(features), nn.Dropout(0.2), nn.Linear(features, 256), _Norm(256), nn.Dropout(0.2)
        )
        self.out_features = 256

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.convolutions(self.dropout(x), mask)

    def head(self, features: Tensor) -> Tensor:
        return self.layers(features)


class _DenseBlock(nn.Module):
    """Columns of convolutions, each reading all earlier outputs of its column; then 400 by 1 x 1."""

    def __init__(self, width: int, kernels: list[tuple[int, int]], activation: Any):
        super().__init__()
        self.activation = activation
        self.columns = nn.ModuleList(self._column(width, [row[i] for row in kernels]) for i in range(2))
        self.last = nn.Conv1d(width + 2 * 100, 400, 1)

    @staticmethod
    def _column(width: int, kernels: list[int]) -> nn.ModuleList:
        outputs = [200, 100, 100, 100, 100]
        inputs = [width, *(sum(outputs[:depth]) for depth in range(1, 5))]
        return nn.ModuleList(
            nn.Conv1d(i, o, kernel, padding=kernel // 2)
            for i, o, kernel in zip(inputs, outputs, kernels, strict=True)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, length, width) to (batch, length, 400); padding is zero before and after."""
        real = mask[:, None, :]
        x = x.mT * real
        ends = []
        for column in self.columns:
            first, *others = cast(nn.ModuleList, column)
            outputs = [self.activation(first(x) * real)]
            for convolution in others:
                outputs.append(self.activation(convolution(torch.cat(outputs, dim=1)) * real))
            ends.append(outputs[-1])
        return functional.relu(self.last(torch.cat([x, *ends], dim=1)) * real).mT


class DenseNetCnn(_Encoder):
    """Dropout 0.3, dense block, norm, dropout, kernels 2 to 4, norm, dropout."""

    def __init__(self, width: int, texts: int):
        super().__init__()
        self.dropout = nn.Dropout(0.3)
        self.block = _DenseBlock(width, [(1, 1), (3, 3), (3, 5), (3, 7), (3, 9)], functional.relu)
        self.before = nn.Sequential(_Norm(400), nn.Dropout(0.3))
        self.convolutions = _Convolutions(400, (2, 3, 4))
        self.out_features = self.convolutions.out_features * texts
        self.after = nn.Sequential(_Norm(self.out_features), nn.Dropout(0.3))

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.convolutions(self.before(self.block(self.dropout(x), mask)), mask)

    def head(self, features: Tensor) -> Tensor:
        return self.after(features)


class DenseNetDsa(_Encoder):
    """Dropout 0.3, dense block, norm, dropout, 8 heads of dynamic self-attention of 300, norm, dropout,
    a linear layer of 256, norm, dropout.
    """

    HEADS, SIZE, ROUNDS = 8, 300, 2

    def __init__(self, width: int, texts: int):
        super().__init__()
        self.dropout = nn.Dropout(0.3)
        kernels = [(1, 1), (3, 3), (5, 5), (7, 7), (9, 9)]
        self.block = _DenseBlock(width, kernels, functional.leaky_relu)
        self.before = nn.Sequential(_Norm(400), nn.Dropout(0.3))
        self.heads = nn.Linear(400, self.HEADS * self.SIZE)
        features = self.HEADS * self.SIZE * texts
        self.layers = nn.Sequential(
            _Norm(features), nn.Dropout(0.3), nn.Linear(features, 256), _Norm(256), nn.Dropout(0.3)
        )
        self.out_features = 256

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        x = functional.leaky_relu(self.heads(self.before(self.block(self.dropout(x), mask))))
        x = x.unflatten(-1, (self.HEADS, self.SIZE)).transpose(1, 2)  # (batch, heads, length, size)
        return dynamic_attention(x, mask, self.ROUNDS).flatten(1)

    def head(self, features: Tensor) -> Tensor:
        return self.layers(features)


def dynamic_attention(x: Tensor, mask: Tensor, rounds: int) -> Tensor:
    """Sequences as single vectors by routing (Yoon et al. 2018, algorithm 1).

    Every round z = tanh(sum_i a_i x_i) with a = softmax(q) over the real positions, and then
    q_i += x_i . z. The weights take no gradient.

    Args:
        x: (batch, heads, length, size).
        mask: (batch, length).
        rounds: How often.

    Returns (batch, heads, size).
    """
    scores = x.new_zeros(x.shape[:-1])
    padding = mask[:, None, :] == 0
    for turn in range(rounds):
        weights = scores.masked_fill(padding, float("-inf")).softmax(dim=-1).detach()
        z = torch.tanh(torch.einsum("bhl,bhld->bhd", weights, x))
        if turn + 1 < rounds:
            scores = scores + torch.einsum("bhld,bhd->bhl", x, z)
    return z


class _Norm(nn.Module):
    """Layer norm, named so that its weights take no weight decay."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def _max_over_time(x: Tensor, mask: Tensor) -> Tensor:
    """The maximum of (batch, length or more, width) over real positions."""
    padding = functional.pad(mask, (0, x.shape[1] - mask.shape[1])) == 0
    return x.masked_fill(padding[..., None], float("-inf")).amax(dim=1)


ENCODERS: dict[str, Any] = {
    "bilstm": BiLstm,
    "bilstm_max": BiLstmMax,
    "mean_bilstm": MeanBiLstm,
    "cnn": Cnn,
    "densenet_cnn": DenseNetCnn,
    "densenet_dsa": DenseNetDsa,
}


class WordModelForSequenceClassification(PreTrainedModel):
    """Word vectors, an encoder of one of the kinds, a classifier."""

    config_class = WordModelConfig
    base_model_prefix = "encoder"

    def __init__(self, config: WordModelConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=0)
        self.encoder: _Encoder = ENCODERS[config.kind](config.embedding_size, 4 if config.pair else 1)
        self.classifier = nn.Linear(self.encoder.out_features, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own initial weights stay as they are."""

    def freeze(self) -> None:
        """Let the word vectors stay as they are, where the configuration says so (loading forgets it)."""
        self.embeddings.weight.requires_grad_(not self.config.frozen)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Logits of padded ids (batch, length); mask and segments of the same shape."""
        if not torch.compiler.is_exporting() and not input_ids.shape[1]:  # a tokenizer's of no text
            input_ids = input_ids.new_zeros(len(input_ids), 1, dtype=torch.long)
            attention_mask = token_type_ids = torch.zeros_like(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if not self.config.pair:
            return SequenceClassifierOutput(logits=self._classify(self._encode(input_ids, mask)))
        assert token_type_ids is not None
        second = token_type_ids * mask
        first = functional.pad((mask - second)[:, 1:], (0, 1))  # without its last position, the separator
        u = self._encode(input_ids * first, first)
        v = self._encode(*_left_aligned(input_ids, second))
        return SequenceClassifierOutput(logits=self._classify(torch.cat([u, v, (u - v).abs(), u * v], -1)))

    def _encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        # The first position always counts: a text without words is one zero vector.
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], dim=1)
        return self.encoder.encode(self.embeddings(ids), mask)

    def _classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.encoder.head(features))


def _left_aligned(ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The ids where `keep` is 1, moved to the front, the rest padding (0); and their mask."""
    places = torch.arange(ids.shape[1], device=ids.device)
    order = torch.argsort(places - keep * ids.shape[1], dim=1)  # no two alike: any sort is stable
    mask = keep.gather(1, order)
    return ids.gather(1, order) * mask, mask


AutoConfig.register(WordModelConfig.model_type, WordModelConfig)
AutoModelForSequenceClassification.register(WordModelConfig, WordModelForSequenceClassification)
