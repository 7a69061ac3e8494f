"""Teachers and students: Hugging Face encoders, loaded, made smaller, run for their signal, saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from data_pipeline.model_folder import model_folder
from data_pipeline.vocabulary import copy_tokenizer
from data_pipeline.whole import replace_folder
from distill import nezha  # noqa: F401  (its model type becomes known)
from distill.attention import Collector, Heads, collecting, install, needs_no_mask
from distill.custom import Named, load, name_of
from distill.fused import fuse_layer_norms
from distill.inherit import inherit
from distill.int8 import check_int8, has_int8, quantise
from distill.layer_map import layer_map
from distill.products import bf16_is_faster, speed_up_products
from distill.read_places import reading
from distill.settings import StudentConfig, TeacherConfig
from distill.word_students import WordModelForSequenceClassification

PROJECTIONS = "projections.safetensors"
BEST = "best.json"  # what a student scored on dev when it was saved
DROPOUTS = {
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "classifier_dropout_prob",  # ALBERT's
    "pooler_dropout",  # DeBERTa's
    *("embedding_dropout", "attention_dropout", "mlp_dropout"),  # ModernBERT's
}


@dataclass
class Batch:
    """Sequences of like lengths: ids, mask, segments, int64 (batch, length); labels (batch, ...) or None.

    `teacher` holds the teacher's logits, (batch, outputs), where they were computed beforehand.
    `masked` holds the places of masked tokens in the flattened batch, (places,); labels are theirs then.
    `full`, set by `to`, says that no sequence is padded: to ask a GPU later would mean to wait for it.
    """

    ids: Tensor
    mask: Tensor
    segments: Tensor
    labels: Tensor | None = None
    teacher: Tensor | None = None
    masked: Tensor | None = None
    full: bool = field(default=False, init=False)

    def parts(self) -> dict[str, Tensor]:
        """What it has of tensors, by name."""
        return {name: part for name, part in vars(self).items() if isinstance(part, Tensor)}

    def to(self, device: torch.device) -> Batch:
        """The same on `device`, copied without waiting: from pinned memory, for a copy from any other waits
        until the GPU has done its queued work.
        """
        parts = self.parts()
        if device.type == "cuda":
            parts = {name: part if part.is_cuda else part.pin_memory() for name, part in parts.items()}
        moved = Batch(**{name: part.to(device, non_blocking=True) for name, part in parts.items()})
        moved.full = self.full or (self.mask.device.type == "cpu" and bool(self.mask.all()))
        return moved


@dataclass
class Signal:
    """What an encoder says of a batch. Layers count from 1; hidden layer 0 is the embedding."""

    logits: Tensor | None = None  # (batch, classes), or (places, tokens) of a batch with masked places
    hidden: dict[int, Tensor] = field(default_factory=dict)  # (batch, length, width)
    attention: dict[int, Heads] = field(default_factory=dict)


def model_inputs(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """A batch as a model's keyword arguments: segments only where the model has embeddings for them, and
    no mask of ones where it can do without: flash attention takes no mask.
    """
    inputs = {"input_ids": batch.ids}
    if not (batch.full and needs_no_mask(model)):
        inputs["attention_mask"] = batch.mask
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = batch.segments
    return inputs


def run_encoder(
    model: PreTrainedModel,
    collector: Collector,
    batch: Batch,
    hidden: Iterable[int] = (),
    attention: Iterable[int] = (),
) -> Signal:
    """One forward pass, keeping the layers that are asked for."""
    hidden, attention = list(hidden), list(attention)
    with collecting(collector, attention) as layers, reading(model, batch.masked, bool(hidden)):
        output = model(**model_inputs(model, batch), output_hidden_states=bool(hidden))
    if missing := set(attention) - layers.keys():
        raise ValueError(
            f"a model of type {model.config.model_type} reports no attention of layers {sorted(missing)}; "
            "set the objective's attention and relation to 0"
        )
    logits = getattr(output, "logits", None)
    if batch.masked is not None and logits is not None:
        logits = logits[0]  # `reading` makes them (1, places, ...)
    return Signal(logits, {layer: output.hidden_states[layer] for layer in hidden}, layers)


def attach_collector(model: PreTrainedModel) -> Collector:
    """Make a model report its attention, where it has any."""
    return Collector() if isinstance(model, WordModelForSequenceClassification) else install(model)


class Teacher:
    """A frozen source of a signal: eval mode, no gradients, cut after the last layer needed."""

    def __init__(
        self,
        config: TeacherConfig,
        device: torch.device,
        layers: int | None = None,
        head: Any = AutoModelForSequenceClassification,
        kept: bool = False,
    ):
        """`layers`: load a bare encoder of so many layers; None loads the whole model, of the class `head`.

        `kept`: its logits are stored for later runs, so that `auto` takes no int8.
        """
        path = model_folder(config.path)
        if layers is None:
            model = whole_model(head, path, "teacher")
        else:
            model = AutoModel.from_pretrained(path, **_backbone(path, layers))
            if layers < read_config(path).num_hidden_layers and hasattr(model, "final_norm"):
                model.final_norm = nn.Identity()  # ModernBERT's, of its very last layer alone
        self.collector = attach_collector(model)
        fuse_layer_norms(model)
        if config.precision == "auto" and isinstance(model, WordModelForSequenceClassification):
            self.products = torch.float32
        else:
            self.products = precision_of(config.precision, device, kept)
        dtype = self.products
        if dtype == torch.int8:
            check_int8(device)
            quantise(model.base_model)
            dtype = torch.float32  # of everything but the products
        speed_up_products(model)
        self.model = model.to(device=device, dtype=dtype).requires_grad_(False)
        self.model.train(config.dropout)

    @property
    def precision(self) -> str:
        """That of its products, by the setting's name."""
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.products)

    @torch.no_grad()
    def signal(self, batch: Batch, hidden: Iterable[int] = (), attention: Iterable[int] = ()) -> Signal:
        """The teacher's signal for a batch. (`no_grad`: inference tensors can't be saved.)"""
        return run_encoder(self.model, self.collector, batch, hidden, attention)


def whole_model(head: Any, path: str, name: str, **given: Any) -> PreTrainedModel:
    """A folder's model of the class `head`.

    Raises ValueError where it lacks weights, which transformers would replace by random ones.
    """
    model, said = head.from_pretrained(path, output_loading_info=True, **given)
    if said["missing_keys"]:
        missing = ", ".join(sorted(said["missing_keys"])[:3])
        raise ValueError(f"{name}: {path} lacks weights of its head: {missing}; give a model that has them")
    return model


class StoredTeacher:
    """A teacher whose logits were computed beforehand, in `precision`; `live` runs for its layers."""

    def __init__(self, precision: str, live: Teacher | None = None):
        self.precision = precision
        self.live = live

    def signal(self, batch: Batch, hidden: Iterable[int] = (), attention: Iterable[int] = ()) -> Signal:
        """The signal for a batch that carries the teacher's logits."""
        hidden, attention = list(hidden), list(attention)
        signal = Signal()
        if hidden or attention:
            assert self.live is not None
            signal = self.live.signal(batch, hidden, attention)
        return replace(signal, logits=batch.teacher)


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


def precision_of(precision: str, device: torch.device, kept: bool = False) -> torch.dtype:
    """The dtype of a frozen model's matrix products; `auto` is the fastest, but never int8 if `kept`."""
    if precision != "auto":
        return PRECISIONS[precision]
    if has_bf16_units(device):
        return torch.bfloat16
    if has_int8(device) and not kept:
        return torch.int8
    return torch.bfloat16 if device.type == "cpu" and bf16_is_faster() else torch.float32


def has_bf16_units(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 matrices: GPUs since Ampere, CPUs with AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return torch.cpu._is_amx_tile_supported()


def model_class(setting: str, thing: Named) -> type[PreTrainedModel]:
    """A model class of the user's own, from now on known to `from_pretrained`.

    Raises ValueError where it is none, or where its configuration is not its own.
    """
    cls = load(setting, thing)
    shape = getattr(cls, "config_class", None)
    if not isinstance(cls, type) or not issubclass(cls, PreTrainedModel) or shape is None:
        raise ValueError(
            f"{setting}: {name_of(thing)} is no PreTrainedModel with a config_class; docs/own_student.md "
            "has one"
        )
    kind = shape.model_type
    if not kind or shape.__module__.startswith("transformers."):
        raise ValueError(
            f"{setting}: {name_of(thing)} needs a config_class of its own, with a model_type of its own"
        )
    AutoConfig.register(kind, shape, exist_ok=True)
    AutoModelForSequenceClassification.register(shape, cls, exist_ok=True)
    return cls


def load_classifier(path: str, classes: Iterable[Named] = ()) -> PreTrainedModel:
    """A folder's classifier in fp32 and eval mode; it may be of the user's own `classes`.

    Raises ValueError where weights are missing.
    """
    for each in classes:
        model_class("classes", each)
    kind = AutoModelForSequenceClassification
    return whole_model(kind, model_folder(path), "model", dtype=torch.float32).eval()


def read_config(path: str) -> PretrainedConfig:
    """A model's configuration."""
    return AutoConfig.from_pretrained(model_folder(path))


def _backbone(path: str, layers: int | None = None) -> dict:
    """Arguments that load a bare encoder: no pooler where the family has one, layers cut."""
    config = read_config(path)
    extra = {} if layers is None else {"num_hidden_layers": layers}
    if config.model_type in ("bert", "roberta", "xlm-roberta", "camembert"):
        extra["add_pooling_layer"] = False
    return extra


def student_shape(student: StudentConfig, base: PretrainedConfig) -> PretrainedConfig:
    """The student's configuration: the teacher's family and vocabulary in the student's shape."""
    if student.path:
        config = read_config(student.path)
    else:
        shape: dict[str, Any] = {
            "num_hidden_layers": student.layers,
            "hidden_size": student.hidden_size,
            "num_attention_heads": student.heads,
            "intermediate_size": student.intermediate_size,
        }
        if hasattr(base, "pooler_hidden_size"):  # DeBERTa's
            shape["pooler_hidden_size"] = student.hidden_size
        if kinds := getattr(base, "layer_types", None):  # ModernBERT's: full or sliding-window attention
            shape["layer_types"] = _kinds(kinds, student.layers)
        config = type(base)(**{**base.to_dict(), **shape})
    return with_dropout(config, student.dropout)


def _kinds(kinds: list[str], layers: int) -> list[str]:
    """Kinds of attention of the student's layers: those of the teacher's layers in the uniform map, which
    they learn or inherit from.
    """
    if layers > len(kinds):  # no map then, and layers are not compared
        return (kinds * layers)[:layers]
    return [kinds[teacher - 1] for _, teacher in layer_map("uniform", layers, len(kinds))[1:]]


def with_dropout(config: PretrainedConfig, dropout: float) -> PretrainedConfig:
    """Set every dropout of an encoder's configuration, in place; returns it."""
    for name in vars(config).keys() & DROPOUTS:
        if getattr(config, name) is not None:
            setattr(config, name, dropout)
    return config


def build_backbone(student: StudentConfig, teacher: str, head: Any = AutoModel) -> PreTrainedModel:
    """A student encoder in fp32, bare or with a head: with the weights of its path, or initial ones."""
    config = student_shape(student, read_config(teacher))
    path = model_folder(student.path or teacher)
    extra = _backbone(path) if head is AutoModel else {}
    if student.path:
        return head.from_pretrained(path, config=config, dtype=torch.float32, **extra)
    model = head.from_config(config, dtype=torch.float32, **extra)
    if student.start == "teacher":
        inherit(model.base_model, teacher)
    return model


PROBLEMS = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


def set_labels(config: PretrainedConfig, labels: list[str], kind: str) -> None:
    """Give a configuration its labels (none: one output) and the kind of its task."""
    config.num_labels = max(1, len(labels))
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = PROBLEMS[kind]


def build_classifier(
    path: str | None, config: PretrainedConfig, labels: list[str], kind: str = "classification"
) -> PreTrainedModel:
    """A classifier in fp32 (one output without labels: regression): a folder's, or random weights.

    A head of another number of outputs gives way to a random one.
    """
    outputs = config.num_labels  # the folder's, before they change
    set_labels(config, labels, kind if labels else "regression")
    if path:
        model = AutoModelForSequenceClassification.from_pretrained(
            model_folder(path),
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=config.num_labels != outputs,
        )
        if isinstance(model, WordModelForSequenceClassification):
            model.freeze()
        return model
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


def save_model(
    model: PreTrainedModel,
    target: Path,
    tokenizer: str,
    weights: dict[str, Tensor],
    projections: dict[str, Tensor],
    length: int | None = None,
    best: dict[str, Any] | None = None,
) -> None:
    """Save a Hugging Face folder (safetensors, fp32, tokenizer), beside and renamed.

    `length`: of the longest sequences that it was trained with, in tokens. `best`: what it scored on dev.
    """
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    config, implementation = model.config, model.config._attn_implementation
    config._attn_implementation = "sdpa"  # ours is not known where the folder will be loaded
    try:
        model.save_pretrained(partial, state_dict={k: v.float() for k, v in weights.items()})
        config.dtype = torch.float32  # save_pretrained wrote that of training, which would be loaded
        config.save_pretrained(partial)
    finally:
        config._attn_implementation = implementation
    copy_tokenizer(tokenizer, partial, length)
    if projections:
        tensors = {name: tensor.float() for name, tensor in projections.items()}
        save_file(tensors, partial / PROJECTIONS)
    if best:
        (partial / BEST).write_text(json.dumps(best) + "\n", encoding="utf-8")
    replace_folder(partial, target)


def saved_projections(path: str | None) -> dict[str, Tensor]:
    """The projections saved with a student; none without a folder, or where it has none."""
    file = Path(model_folder(path)) / PROJECTIONS if path else None
    return load_file(file) if file and file.is_file() else {}
