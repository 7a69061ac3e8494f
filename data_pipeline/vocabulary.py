"""The tokenizer of a model folder, its special tokens, and a fingerprint to compare folders by.

Only the `tokenizers` library is needed for a folder with a `tokenizer.json`, so checks at the
start of a job stay fast; older folders (`vocab.txt` alone) go through `transformers`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data_pipeline.model_folder import model_folder
from data_pipeline.untrusted import parse_json

# The names that BERT and RoBERTa use, where the folder says none.
SPECIAL = {
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "pad_token": ("[PAD]", "<pad>"),
    "mask_token": ("[MASK]", "<mask>"),
    "unk_token": ("[UNK]", "<unk>"),
}
CONFIG = "tokenizer_config.json"
ALIASES = {"cls_token": "bos_token", "sep_token": "eos_token"}
FAST = "tokenizer.json"
MERGES = "merges.txt"
VOCABULARY_FILES = (
    FAST,
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "tokenizer.model",
)
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    MERGES,
    CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclass(frozen=True)
class Vocabulary:
    """A fast tokenizer with the ids of its special tokens."""

    tokenizer: Tokenizer
    cls: int
    sep: int
    pad: int
    mask: int
    unk: int
    size: int
    fingerprint: str

    @property
    def separators_between(self) -> int:
        """How many separators stand between two segments: 1 in BERT, 2 in RoBERTa."""
        return self.tokenizer.num_special_tokens_to_add(True) - 2


@cache
def load_vocabulary(folder: str) -> Vocabulary:
    """Read the tokenizer in `folder`. Raises ValueError where there is none that can be used."""
    path = Path(model_folder(folder))
    tokenizer = _read_tokenizer(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    entries = tokenizer.get_vocab(with_added_tokens=True)
    if len(entries) <= len(tokenizer.get_added_tokens_decoder()):
        raise ValueError(f"{folder}: the vocabulary holds special tokens alone; save the tokenizer again")
    names = _special_names(path)
    ids = {}
    for key, usual in SPECIAL.items():
        said = names.get(key) or names.get(ALIASES.get(key, ""))
        tokens = map(tokenizer.token_to_id, [said] if said else usual)
        token = next((token for token in tokens if token is not None), None)
        if token is None:
            raise ValueError(f"{folder}: the tokenizer has no {key}; an encoder's tokenizer is needed")
        ids[key] = token
    identity = json.dumps([sorted(entries.items()), [ids[key] for key in SPECIAL]])
    return Vocabulary(
        tokenizer=tokenizer,
        cls=ids["cls_token"],
        sep=ids["sep_token"],
        pad=ids["pad_token"],
        mask=ids["mask_token"],
        unk=ids["unk_token"],
        size=max(entries.values()) + 1,
        fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:16],
    )


def _read_tokenizer(path: Path) -> Tokenizer:
    if (path / FAST).is_file():
        try:
            return Tokenizer.from_file(str(path / FAST))
        except Exception as error:  # the library raises bare Exception on a malformed file
            raise ValueError(f"{path}/{FAST} can't be read: {error}") from None
    found = [name for name in VOCABULARY_FILES if (path / name).is_file()]
    if not found:
        raise ValueError(f"{path}: no {FAST} or vocabulary file there; give a model folder")
    # Without its merges transformers would cut words into letters.
    if found == ["vocab.json"] and not (path / MERGES).is_file():
        raise ValueError(f"{path}: vocab.json is there without {MERGES}; copy that beside it")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path)).backend_tokenizer
    except Exception as error:  # of many kinds: a damaged file, a missing library, no fast tokenizer
        reason = " ".join(str(error).split())[:200]
        if any(path.glob("*.model")) and not find_spec("sentencepiece"):
            reason = "run pip install sentencepiece"
        raise ValueError(f"{path}: no {FAST} there, and its vocabulary can't be read: {reason}") from None


def _special_names(path: Path) -> dict[str, str]:
    """The special tokens that a folder's files name, by their keys (cls_token and so on)."""
    names = {}
    for file in (CONFIG, "special_tokens_map.json"):
        if not (path / file).is_file():
            continue
        try:
            entries = parse_json((path / file).read_bytes()).items()
        except (ValueError, AttributeError):
            raise ValueError(f"{path}/{file} is damaged; save the tokenizer again") from None
        for key, value in entries:
            content = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(content, str):
                names[key] = content
    return names


def copy_tokenizer(source: str, target: Path, length: int | None = None) -> None:
    """Put the tokenizer's files of the model `source` into the folder `target`, and a tokenizer.json.

    `length`: the longest sequence in tokens that the model in `target` was trained with.
    """
    source = model_folder(source)
    for name in TOKENIZER_FILES:
        if os.path.isfile(os.path.join(source, name)):
            shutil.copyfile(os.path.join(source, name), target / name)
    if not (target / FAST).is_file():
        load_vocabulary(source).tokenizer.save(str(target / FAST))
    if length:
        described = {**_described(target), "model_max_length": length}
        (target / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def trained_length(path: str) -> int | None:
    """The longest sequence in tokens that a model says it was trained with; None where it says none."""
    length = _described(Path(model_folder(path))).get("model_max_length")
    return length if isinstance(length, int) and 0 < length < 1 << 20 else None  # some say 10^30


def _described(folder: Path) -> dict[str, Any]:
    """A folder's tokenizer_config.json; empty where it can't be read."""
    try:
        return dict(parse_json((folder / CONFIG).read_bytes()).items())
    except (OSError, ValueError, AttributeError):
        return {}
