"""Noisy variants of a text: words masked or replaced by their part of speech, n-grams kept or masked.

Tang et al. 2019, "Distilling task-specific knowledge from BERT into simple neural networks", section 3.2,
with the cap on changed words of iclassifier.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from data_pipeline.chinese import segmenter
from data_pipeline.settings import NoiseConfig
from data_pipeline.words import WORD

SPACY_MODEL = "en_core_web_sm"


class Tagged(NamedTuple):
    """A word of a text, characters begin to end, with its part of speech."""

    begin: int
    end: int
    tag: str


Tagger = Callable[[str], list[Tagged]]  # finds the words of a text, in order


def tagger(config: NoiseConfig, unit: str) -> Tagger:
    """The tagger that settings name. Raises ValueError where it is not installed."""
    if unit == "chinese_word":
        _need("jieba", "jieba")
        return jieba_tags
    if config.tagger == "textblob":
        _need("textblob", "textblob")
        return textblob_tags
    _need(SPACY_MODEL, f"spacy and its model {SPACY_MODEL}")
    import spacy

    pipeline = spacy.load(SPACY_MODEL, disable=["parser", "ner", "lemmatizer"])
    return lambda text: [Tagged(w.idx, w.idx + len(w), w.tag_) for w in pipeline(text) if not w.is_space]


def _need(module: str, name: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"noise: the method needs {name}; pip install it, or set noise.tagger")


def textblob_tags(text: str) -> list[Tagged]:
    """Words as in the Penn Treebank, tagged by the Pattern lexicon."""
    from textblob.en.taggers import PatternTagger

    spans = [match.span() for match in re.finditer(WORD, text)]
    words = [text[begin:end] for begin, end in spans]
    tags = [tag for _, tag in PatternTagger().tag(" ".join(words), tokenize=False)]
    if len(tags) != len(spans):  # the lexicon splits some by itself
        tags = [""] * len(spans)
    return [Tagged(begin, end, tag) for (begin, end), tag in zip(spans, tags, strict=True)]


def jieba_tags(text: str) -> list[Tagged]:
    """Chinese words, tagged."""
    found, place = [], 0
    for pair in segmenter().posseg.cut(text):
        if not pair.word.isspace():
            found.append(Tagged(place, place + len(pair.word), pair.flag))
        place += len(pair.word)
    return found


def words_by_tag(texts: Iterable[str], tag: Tagger) -> dict[str, list[str]]:
    """The distinct words of each part of speech, in lower case, sorted."""
    found: dict[str, set[str]] = {}
    for text in texts:
        for word in tag(text):
            found.setdefault(word.tag, set()).add(text[word.begin : word.end].lower())
    return {name: sorted(words) for name, words in found.items()}


def noisy_variants(
    text: str,
    words: list[Tagged],
    by_tag: dict[str, list[str]],
    mask: str,
    config: NoiseConfig,
    tries: int,
    key: list[int],
) -> list[str]:
    """Distinct noisy variants of a text.

    Args:
        text: The original.
        words: Its words.
        by_tag: The words that may stand for one another, by part of speech.
        mask: The teacher's mask token.
        config: How much noise.
        tries: Variants drawn.
        key: Seed of the draws.
    """
    rng = np.random.default_rng(key)
    found: dict[str, None] = {}
    for _ in range(tries if words else 0):
        found[_noisy(text, words, by_tag, mask, config, rng)] = None
    found.pop(text, None)
    return list(found)


def _noisy(
    text: str,
    words: list[Tagged],
    by_tag: dict[str, list[str]],
    mask: str,
    config: NoiseConfig,
    rng: np.random.Generator,
) -> str:
    own = [text[word.begin : word.end] for word in words]
    draws = rng.random(len(words))
    allowed = int(config.most * len(words))
    for place in rng.permutation(len(words)):
        if draws[place] >= config.masked + config.replaced or not allowed:
            continue
        allowed -= 1
        options = by_tag.get(words[place].tag, [])
        if draws[place] < config.masked:
            own[place] = mask
        elif options:
            own[place] = options[rng.integers(len(options))]
    kept = range(len(words))
    if rng.random() < config.ngram:
        length = min(int(rng.integers(1, config.longest + 1)), len(words))
        begin = int(rng.integers(len(words) - length + 1))
        ngram = range(begin, begin + length)
        if config.ngrams == "keep":
            kept = ngram
        else:
            own = [mask if place in ngram else word for place, word in enumerate(own)]
    return _joined(text, words, own, kept)


def _joined(text: str, words: list[Tagged], own: list[str], kept: range) -> str:
    """The kept words with what stands between them; where all are kept, also with what stands around."""
    parts = [own[kept[0]]]
    for place in kept[1:]:
        parts += [text[words[place - 1].end : words[place].begin], own[place]]
    if len(kept) < len(words):
        return "".join(parts)
    return text[: words[0].begin] + "".join(parts) + text[words[-1].end :]
