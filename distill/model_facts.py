"""What a model folder says of itself: read from its files alone, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from data_pipeline.model_folder import model_folder
from distill.custom import Named, name_of

WORDS = "distillery_words"  # the model type of students of whole words


def model_config(path: str, name: str, classes: Iterable[Named] = ()) -> dict:
    """A model folder's config.json; of the user's own `classes` it need not be that of an encoder."""
    file = Path(model_folder(path)) / "config.json"
    if not file.is_file():
        raise ValueError(f"{name}: {path} is no model folder (no config.json there); give one")
    try:
        config = dict(json.loads(file.read_text(encoding="utf-8")).items())
    except (ValueError, AttributeError):
        raise ValueError(f"{name}: {file} is damaged; save the model again") from None
    for key in (
        ()
        if of_words(config) or is_custom(config, classes)
        else ("num_hidden_layers", "num_attention_heads")
    ):
        if key not in config:
            raise ValueError(
                f"{name}: {path} is of type {config.get('model_type')}, without {key}; give an encoder "
                "such as BERT, RoBERTa, ELECTRA or ALBERT"
            )
    return config


def own_labels(model: dict) -> list[str] | None:
    """Label names that a model was trained with; None where it has only numbers."""
    names = model.get("id2label")
    if not names:
        return None
    labels = [names[key] for key in sorted(names, key=int)]
    return None if all(label.startswith("LABEL_") for label in labels) else labels


def positions(model: dict) -> int:
    """Longest sequence that a model takes; models of words take any."""
    if of_words(model) or "num_hidden_layers" not in model:
        return model.get("max_position_embeddings", 1 << 20)
    reserved = 2 if model.get("model_type") in ("roberta", "xlm-roberta", "camembert") else 0
    return model.get("max_position_embeddings", 512) - reserved


def of_words(model: dict) -> bool:
    """Whether a config.json is that of a model of whole words."""
    return model.get("model_type") == WORDS


def is_custom(model: dict, classes: Iterable[Named]) -> bool:
    """Whether a config.json is that of one of these classes."""
    names = {name_of(each).rpartition(".")[2] for each in classes}
    return not names.isdisjoint(model.get("architectures") or [])


def has_weights(model: str) -> bool:
    """Whether a model folder holds weights that are loaded."""
    return any(Path(model_folder(model)).glob("model*.safetensors"))
