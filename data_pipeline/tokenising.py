"""Sentences to token ids, many at once.

BERT's tokenizer treats what lies between two spaces by itself, so each distinct word is tokenised
once and remembered: on English text that is several times faster than the tokenizer alone, and the
same ids. Other tokenizers are called for every sentence.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import chain

from tokenizers import Encoding, Tokenizer

from data_pipeline.chinese import segmenter
from data_pipeline.settings import Unit
from data_pipeline.vocabulary import Vocabulary

# Added to the id of a token that continues the word before it, where whole words are masked.
CONTINUES = 1 << 30
BEGINS = ("\u0120", "\u2581")  # mark the first token of a word: of byte-level BPE, of SentencePiece
REMEMBERED_TOKENS = 250_000  # of all words together, some 20 MB; then the words are forgotten


class SentenceTokenizer:
    """Token ids of sentences, without special tokens.

    Args:
        vocabulary: The tokenizer.
        unit: `token`, or the kind of word whose later tokens carry CONTINUES: words as the
            tokenizer cuts them (at spaces and punctuation), or Chinese words as jieba finds them.
    """

    def __init__(self, vocabulary: Vocabulary, unit: Unit = "token"):
        self.tokenizer = vocabulary.tokenizer
        self.unit = unit
        described = json.loads(self.tokenizer.to_str())
        self.by_word = unit != "chinese_word" and _words_stand_alone(described)
        # Byte-level tokenizers spell a word after a space in another way than one at the beginning.
        self.lead = " " if _is_byte_level(described.get("pre_tokenizer")) else ""
        self._known: dict[str, list[int]] = {}
        self._remembered = 0

    def __call__(self, sentences: list[str]) -> list[list[int]]:
        """The ids of every sentence."""
        if not self.by_word:
            return self._encode([self.lead + sentence for sentence in sentences])
        sentences_words = [sentence.split(" ") for sentence in sentences]
        distinct = set(chain.from_iterable(sentences_words))
        self._learn(distinct)
        known = self._known.__getitem__
        return [[*chain.from_iterable(map(known, words))] for words in sentences_words]

    def _learn(self, words: set[str]) -> None:
        if self._remembered > REMEMBERED_TOKENS:
            self._known, self._remembered = {}, 0
        new = [word for word in words if word not in self._known]
        for word, ids in zip(new, self._encode(new), strict=True):
            self._known[word] = ids
            self._remembered += 1 + len(ids)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if self.unit == "token":
            fast = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in fast]
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        if self.unit == "word":
            return [_marked(encoding.ids, encoding.word_ids) for encoding in encodings]
        return [_by_jieba(encoding, text) for encoding, text in zip(encodings, texts, strict=True)]


def _words_stand_alone(described: dict) -> bool:
    """Whether text between spaces is tokenised by itself, whatever stands beside it."""
    kinds = [(described.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    added = [token["content"] for token in described.get("added_tokens", [])]
    return kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and not any(
        " " in token for token in added
    )


@cache
def continuing_prefix(vocabulary: Vocabulary) -> str | None:
    """What marks a token that goes on with a word; "" where none does.

    None where those that begin a word are marked instead, by BEGINS, as in byte-level and SentencePiece
    vocabularies.
    """
    model = json.loads(vocabulary.tokenizer.to_str())["model"]
    prefix = model.get("continuing_subword_prefix") or ""
    if prefix or model["type"] == "WordPiece":
        return prefix
    entries = vocabulary.tokenizer.get_vocab(with_added_tokens=False)
    return None if any(token[:1] in BEGINS for token in entries) else ""


def leads_with_space(tokenizer: Tokenizer) -> bool:
    """Whether a word within a text is spelt with the space before it."""
    return _is_byte_level(json.loads(tokenizer.to_str()).get("pre_tokenizer"))


def _is_byte_level(pre_tokenizer: dict | None) -> bool:
    """Whether a space is part of the word after it, and none is put before the first."""
    if not pre_tokenizer:
        return False
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return any(part["type"] == "ByteLevel" and not part.get("add_prefix_space") for part in parts)


def _marked(ids: list[int], words: list[int | None]) -> list[int]:
    """The ids, CONTINUES added wherever a token is of the same word as the one before."""
    before: list[int | None] = [None, *words]
    return [
        token + CONTINUES if word is not None and word == last else token
        for token, word, last in zip(ids, words, before, strict=False)
    ]


def _by_jieba(encoding: Encoding, text: str) -> list[int]:
    word_of = [number for number, word in enumerate(segmenter().cut(text)) for _ in word]
    words: list[int | None] = [word_of[begin] for begin, _ in encoding.offsets]
    return _marked(encoding.ids, words)
