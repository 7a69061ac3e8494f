"""The objective: student, projections and a short list of named, weighted terms in one module.

DeepSpeed wraps this module, so projections train with the student and all gradients are reduced.
Every term is a sum over this process's rows divided by a count over the whole global step, so
that padding, micro-batches and the number of processes change nothing.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill.custom import load, name_of
from distill.encoders import Batch, Signal, attach_collector, run_encoder
from distill.layer_map import LayerMap
from distill.losses import (
    attention_score_loss,
    label_loss,
    multi_label_loss,
    soft_multi_label_loss,
    soft_target_loss,
    squared_error,
)
from distill.projection import HiddenProjection
from distill.relations import relation_loss
from distill.settings import ObjectiveConfig


class Counts(NamedTuple):
    """Sums over rows that terms are divided by; `pairs` are pairs of positions within a row.

    Under `normalise: all` padding counts in `tokens` and `pairs`; in `real_*` it never does.
    """

    rows: Any
    tokens: Any
    pairs: Any
    masked: Any
    real_tokens: Any
    real_pairs: Any


def count(batch: Batch, normalise: str) -> Tensor:
    """The `Counts` of a batch: float64 (6,)."""
    real = batch.mask.sum(dim=1).double()
    lengths = torch.full_like(real, batch.ids.shape[1]) if normalise == "all" else real
    masked = real.new_full((), 0 if batch.masked is None else len(batch.masked))
    rows = torch.ones_like(real).sum()
    return torch.stack(Counts(rows, *_tokens_and_pairs(lengths), masked, *_tokens_and_pairs(real)))


def _tokens_and_pairs(lengths: Tensor) -> tuple[Tensor, Tensor]:
    return lengths.sum(), lengths.square().sum()


def _custom(
    name: str, term: Callable[[Signal, Signal, Batch], Tensor], own: Signal, signal: Signal, batch: Batch
) -> Tensor:
    """A term of the user's own. Raises ValueError where it fails, or gives what can't be added up."""
    try:
        value = term(own, signal, batch)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)  # the first is this function's
        where = next(
            (f"{one.filename}:{one.lineno}" for one in frames[1:] if "/torch/" not in one.filename), ""
        )
        raise ValueError(
            f"objective.custom: {name} failed: {type(error).__name__}: {error} ({where})"
        ) from error
    if not isinstance(value, Tensor) or value.dim():
        what = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"objective.custom: {name} returned {what}; return its sum over the rows, a tensor without "
            "dimensions"
        )
    if torch.is_grad_enabled() and not value.requires_grad:
        raise ValueError(f"objective.custom: {name} has no gradient; compute it from the student's outputs")
    return value


class Objective(nn.Module):
    """Runs the student and compares it with the teacher's signal.

    Args:
        student: A Hugging Face encoder, bare or with a classifier.
        config: Weights and kinds of the terms.
        layers: The layer map.
        teacher_width: Width of the teacher's hidden states, for the projections.
    """

    def __init__(
        self, student: PreTrainedModel, config: ObjectiveConfig, layers: LayerMap, teacher_width: int
    ):
        super().__init__()
        self.student = student
        self.collector = attach_collector(student)
        self.config = config
        self.layers = layers
        self.teacher_width = teacher_width
        projected = len(layers) if config.projection == "per_layer" else 1
        self.projections = nn.ModuleList()
        for _ in range(projected if config.hidden else 0):
            std = student.config.initializer_range
            self.projections.append(HiddenProjection(student.config.hidden_size, teacher_width, std))
        self.custom: dict[str, Callable[[Signal, Signal, Batch], Tensor]] = {}
        self.custom_modules = nn.ModuleList()  # what they learn trains with the student
        for thing in config.custom:
            term = load("objective.custom", thing)
            if isinstance(term, type):
                term = term(getattr(student.config, "hidden_size", 0), teacher_width)
                self.custom_modules.append(term)
            self.custom[name_of(thing)] = term

    @property
    def hidden_layers(self) -> LayerMap:
        """Pairs of layers whose hidden states are compared."""
        return self.layers if self.config.hidden or self.config.custom_layers else []

    @property
    def attention_layers(self) -> LayerMap:
        """Pairs of layers whose attention or relations are compared; the embedding has none."""
        wanted = self.config.attention or self.config.relation
        return [pair for pair in self.layers if pair[0]] if wanted else []

    def forward(self, batch: Batch, signal: Signal, counts: Tensor) -> dict[str, Tensor]:
        """The loss and its weighted terms, by name.

        Args:
            batch: This process's micro-batch.
            signal: The teacher's, of the same rows.
            counts: The `Counts` of the whole global step: (6,).
        """
        whole = Counts(*counts)
        own = run_encoder(
            self.student,
            self.collector,
            batch,
            hidden=[student for student, _ in self.hidden_layers],
            attention=[student for student, _ in self.attention_layers],
        )
        terms: dict[str, Tensor] = {}
        if self.config.attention:
            terms["attention"] = self._attention(own, signal, batch) / whole.pairs
        if self.config.relation:
            terms["relation"] = self._relation(own, signal, batch) / whole.tokens
        if self.config.hidden:
            terms["hidden"] = self._hidden(own, signal, batch) / whole.tokens
        terms |= self._answers(own.logits, signal.logits, batch, whole)
        weighted = {name: getattr(self.config, name) * term for name, term in terms.items()}
        for (name, term), weight in zip(self.custom.items(), self.config.custom.values(), strict=True):
            weighted[name] = weight * _custom(name, term, own, signal, batch) / whole.rows
        return {"loss": torch.stack(list(weighted.values())).sum(), **weighted}

    @property
    def projected_flops(self) -> float:
        """FLOPs for each token of projecting hidden states once."""
        if not self.config.hidden:
            return 0.0
        return 2.0 * self.student.config.hidden_size * self.teacher_width * len(self.hidden_layers)

    def _attention(self, own: Signal, signal: Signal, batch: Batch) -> Tensor:
        # Padding keys never count; padding queries do in the paper's code (`normalise: all`).
        queries = self._counted(batch)
        total = torch.zeros((), device=batch.mask.device)
        for student, teacher in self.attention_layers:
            ours, theirs = own.attention[student], signal.attention[teacher]
            heads = ours.query.shape[1]
            total = total + attention_score_loss(ours, theirs, queries, batch.mask) / heads
        return total

    def _relation(self, own: Signal, signal: Signal, batch: Batch) -> Tensor:
        config, queries = self.config, self._counted(batch)
        total = torch.zeros((), device=batch.mask.device)
        for student, teacher in self.attention_layers:
            pair = own.attention[student], signal.attention[teacher]
            for kind in config.relations:
                total = total + relation_loss(*pair, kind, config.relation_heads, queries, batch.mask)
        return total

    def _counted(self, batch: Batch) -> Tensor:
        """The positions that count, (batch, length)."""
        return torch.ones_like(batch.mask) if self.config.normalise == "all" else batch.mask

    def _hidden(self, own: Signal, signal: Signal, batch: Batch) -> Tensor:
        mask = self._counted(batch)
        total = torch.zeros((), device=batch.mask.device)
        for index, (student, teacher) in enumerate(self.hidden_layers):
            projection = self.projections[index if len(self.projections) > 1 else 0]
            total = total + projection(own.hidden[student], signal.hidden[teacher], mask)
        return total

    def _answers(
        self, own: Tensor | None, teacher: Tensor | None, batch: Batch, whole: Counts
    ) -> dict[str, Tensor]:
        """The terms of the student's logits, beside the teacher's and the labels."""
        terms, config = {}, self.config
        # A step of short rows may have no masked token at all.
        answers = whole.rows if batch.masked is None else whole.masked.clamp(min=1)
        if config.logits or config.logits_mse:
            assert own is not None
            assert teacher is not None
            if config.logits:
                terms["logits"] = self._logits(own, teacher) / answers
            if config.logits_mse:
                terms["logits_mse"] = squared_error(own, teacher) / whole.rows
        if config.labels or config.mlm:
            assert own is not None
            assert batch.labels is not None
            if config.labels:
                terms["labels"] = self._labels(own, batch.labels) / whole.rows
            if config.mlm:
                terms["mlm"] = label_loss(own, batch.labels) / answers
        return terms

    def _logits(self, own: Tensor, teacher: Tensor) -> Tensor:
        if own.shape[-1] == 1:
            return squared_error(own, teacher)
        if self.student.config.problem_type == "multi_label_classification":
            return soft_multi_label_loss(own, teacher, self.config.temperature)
        return soft_target_loss(own, teacher, self.config.temperature)

    def _labels(self, own: Tensor, labels: Tensor) -> Tensor:
        if labels.dim() == 2:
            return multi_label_loss(own, labels)
        if own.shape[-1] == 1:
            return squared_error(own[:, 0], labels)
        return label_loss(own, labels)
