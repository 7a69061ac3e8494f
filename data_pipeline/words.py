"""Vocabularies of whole words, for students without a transformer's subwords.

A vocabulary is an ordinary `tokenizer.json`: words as in the Penn Treebank ("do" + "n't"), lower-cased,
accents dropped; Chinese text is cut into characters. It loads wherever tokenizers do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from data_pipeline.settings import WordsConfig
from data_pipeline.whole import whole_folder

PAD, UNKNOWN, CLS, SEPARATOR, MASK = SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# By their names in a model folder's tokenizer_config.json.
NAMED = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
WORD = r"\w+?(?=n't\b)|n't\b|'(?:s|m|re|ve|ll|d)\b|\w+|[^\w\s]"


def build_tokenizer(texts: Iterable[str], config: WordsConfig, more: Iterable[str] = ()) -> Tokenizer:
    """A tokenizer of the words in `texts`, the most frequent first, and after them of `more` words."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=config.lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    room = config.most + len(SPECIAL)
    trainer = trainers.WordLevelTrainer(
        vocab_size=room, min_frequency=config.least, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    words = list(dict.fromkeys([*words, *more]))[:room]
    tokenizer.model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0",
        pair=f"$A:0 {SEPARATOR}:0 $B:1",
        special_tokens=[(SEPARATOR, tokenizer.token_to_id(SEPARATOR))],
    )
    return tokenizer


def write_vocabulary(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer's files into `folder`, whole or not at all."""
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED}
    with whole_folder(folder) as partial:
        tokenizer.save(str(partial / "tokenizer.json"))
        (partial / "tokenizer_config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")


def known_words(tokenizer: Tokenizer) -> list[str]:
    """The words in the order of their ids, special tokens included."""
    entries = tokenizer.get_vocab()
    return sorted(entries, key=entries.__getitem__)
