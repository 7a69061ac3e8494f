"""What a model folder says of itself: read from its files alone, without torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from data_pipeline.model_folder import model_folder
from data_pipeline.untrusted import parse_json
from data_pipeline.vocabulary import trained_length
from distill.custom import Named, name_of

SIZES = {"num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size", "max_position_embeddings"}
# Families whose first position is the one after the padding token's number.
AFTER_PADDING = {
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
WORDS = "distillery_words"  # the model type of students of whole words


def model_config(path: str, name: str, classes: Iterable[Named] = (), any_kind: bool = False) -> dict:
    """A model folder's config.json; with `any_kind`, or of the user's `classes`, it may be no encoder's."""
    file = Path(model_folder(path)) / "config.json"
    if not file.is_file():
        raise ValueError(f"{name}: {path} is no model folder (no config.json there); give one")
    try:
        config = dict(parse_json(file.read_bytes()).items())
    except (ValueError, AttributeError):
        raise ValueError(f"{name}: {file} is damaged; save the model again") from None
    labels = config.get("id2label") or {}
    if not isinstance(labels, dict) or not all(
        key.isdecimal() and isinstance(label, str) for key, label in labels.items()
    ):
        raise ValueError(f"{name}: {file}: id2label must name each number's label")
    for key in SIZES & config.keys():
        if type(config[key]) is not int or config[key] < 1:
            raise ValueError(f"{name}: {file}: {key} is {config[key]!r}; it must be 1 or more")
    shapeless = any_kind or of_words(config) or is_custom(config, classes)
    for key in () if shapeless else ("num_hidden_layers", "num_attention_heads"):
        if key not in config:
            raise ValueError(
                f"{name}: {path} is of type {config.get('model_type')}, without {key}; give an encoder "
                "such as BERT, RoBERTa, ELECTRA or ALBERT; a class of your own is named by --shape.cls "
                "(finetune), --student.cls (task) or --classes (evaluate, export, predict)"
            )
    return config


def own_labels(model: dict) -> list[str] | None:
    """Label names that a model was trained with; None where it has only numbers."""
    names = model.get("id2label")
    if not names:
        return None
    labels = [names[key] for key in sorted(names, key=int)]
    return None if labels == [f"LABEL_{number}" for number in range(len(labels))] else labels


def outputs_of(model: dict, classes: Iterable[Named] = ()) -> int | None:
    """Outputs of a model's classification head; None without one. The user's own `classes` have one."""
    heads = model.get("architectures") or []
    if not is_custom(model, classes) and not any("SequenceClassification" in head for head in heads):
        return None
    labels = model.get("id2label")
    return len(labels) if labels else 2  # as in transformers


def positions(model: dict) -> int:
    """Longest sequence that a model takes; models of words take any."""
    if of_words(model) or "num_hidden_layers" not in model:
        return model.get("max_position_embeddings", 1 << 20)
    longest = model.get("max_position_embeddings", 512)
    kind, pad = model.get("model_type"), model.get("pad_token_id")
    if kind not in AFTER_PADDING:
        return longest
    usual = kind == "mpnet" or not isinstance(pad, int)  # MPNet's embeddings know no other
    return longest - 1 - (1 if usual else pad)


def usual_length(path: str, model: dict) -> int:
    """The longest sequence in tokens where a user gives none: what a model was trained with, else 128."""
    return min(trained_length(path) or 128, positions(model))


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


def check_weights(name: str, path: str) -> None:
    """Refuse a folder whose weights are missing or damaged, as a copy that was cut off leaves them."""
    folder = Path(model_folder(path))
    files = {file.name for file in folder.glob("model*.safetensors")}
    if not files and (older := list(folder.glob("pytorch_model*.bin"))):
        if cut := [file for file in older if not _may_be_torchs(file)]:
            raise ValueError(f"{name}: {cut[0]} is no whole file of torch's; copy or save the model again")
        return
    if (index := folder / "model.safetensors.index.json").is_file():
        try:
            files |= {*parse_json(index.read_bytes())["weight_map"].values()}
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(f"{name}: {index} is damaged; copy the model again") from None
    for file in sorted(files or {"model.safetensors"}):
        try:
            with safe_open(folder / file, "numpy"):
                pass
        except FileNotFoundError:
            raise ValueError(
                f"{name}: {path} lacks its weights (no {file} there); copy or save the model again"
            ) from None
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{name}: {folder / file} can't be read ({error}); copy or save the model again"
            ) from None


def _may_be_torchs(file: Path) -> bool:
    """Whether a file is an archive with its table, which stands at the end, or of torch before 1.6."""
    with file.open("rb") as opened:
        is_bare_pickle = opened.read(1) == b"\x80"
        return is_bare_pickle or is_zipfile(opened)


def fp32_bytes(path: str, model: dict) -> int:
    """Bytes of a folder's weights once they are fp32."""
    halves = (model.get("dtype") or model.get("torch_dtype")) in ("float16", "bfloat16")
    files = Path(model_folder(path)).glob("model*.safetensors")
    return sum(file.stat().st_size for file in files) * (2 if halves else 1)
