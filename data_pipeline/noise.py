"""Noisy variants of a text: words masked or replaced by their part of speech, n-grams kept or masked.

Tang et al. 2019, "Distilling task-specific knowledge from BERT into simple neural networks", section 3.2,
with the cap on changed words of iclassifier.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable
from itertools import pairwise
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
        if not config.replaced:
            return untagged_words
        _need("textblob", "textblob")
        return textblob_tags
    _need(SPACY_MODEL, f"spacy and its model {SPACY_MODEL}")
    import spacy

    pipeline = spacy.load(SPACY_MODEL, disable=["parser", "ner", "lemmatizer"])
    return lambda text: [Tagged(w.idx, w.idx + len(w), w.tag_) for w in pipeline(text) if not w.is_space]


def _need(module: str, name: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"noise: the method needs {name}; pip install it, or set noise.tagger")


def untagged_words(text: str) -> list[Tagged]:
    """Words as in the Penn Treebank, where no part of speech matters."""
    return [Tagged(*match.span(), "") for match in re.finditer(WORD, text)]


def textblob_tags(text: str) -> list[Tagged]:
    """Words as in the Penn Treebank, tagged by the Pattern lexicon."""
    from textblob.en.taggers import PatternTagger

    spans = untagged_words(text)
    words = [text[word.begin : word.end] for word in spans]
    tags = [tag for _, tag in PatternTagger().tag(" ".join(words), tokenize=False)]
    if len(tags) != len(spans):  # the lexicon splits some by itself
        return spans
    return [word._replace(tag=tag) for word, tag in zip(spans, tags, strict=True)]


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
    if not words:
        return []
    rng = np.random.default_rng(key)
    most = int(config.most * len(words))
    noises = rng.random((tries, len(words)))
    changes = _changes(noises < config.masked + config.replaced, most, rng)
    choices = rng.random((tries, len(words))).tolist()
    ngrams = _ngrams(len(words), config, tries, rng)
    if config.ngrams == "mask":  # one that would change too many words is left out, as in iclassifier
        ngrams = [
            ngram if ngram and len({*ngram, *places}) <= most else None
            for ngram, places in zip(ngrams, changes, strict=True)
        ]
    options = [by_tag.get(word.tag, []) for word in words]
    pieces = _pieces(text, words)
    found: dict[str, None] = {}
    for noise, places, choice, ngram in zip(noises.tolist(), changes, choices, ngrams, strict=True):
        own = pieces.copy()
        for place in places:
            if noise[place] < config.masked:
                own[2 * place + 1] = mask
            elif options[place]:
                own[2 * place + 1] = options[place][int(choice[place] * len(options[place]))]
        if ngram and config.ngrams == "mask":
            own[2 * ngram.start + 1 : 2 * ngram.stop : 2] = [mask] * len(ngram)
        elif ngram and len(ngram) < len(words):
            own = own[2 * ngram.start + 1 : 2 * ngram.stop]
        found["".join(own)] = None
    found.pop(text, None)
    return list(found)


def _pieces(text: str, words: list[Tagged]) -> list[str]:
    """The words of a text at odd places, what stands before, between and after them at even ones."""
    cuts = [0, *(place for word in words for place in word[:2]), len(text)]
    return [text[begin:end] for begin, end in pairwise(cuts)]


def _changes(noisy: np.ndarray, most: int, rng: np.random.Generator) -> list[list[int]]:
    """The words that each variant masks or replaces: those of `noisy` (tries, words), or `most`, drawn."""
    places = np.nonzero(noisy)[1].tolist()
    ends = noisy.sum(axis=1).cumsum().tolist()
    rows = [places[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [row if len(row) <= most else rng.permutation(row)[:most].tolist() for row in rows]


def _ngrams(words: int, config: NoiseConfig, tries: int, rng: np.random.Generator) -> list[range | None]:
    """The n-gram that each variant draws, as places of words; None where it draws none."""
    drawn = rng.random(tries) < config.ngram
    lengths = np.minimum(rng.integers(1, config.longest + 1, tries), words)
    begins = rng.integers(words - lengths + 1)
    return [
        range(begin, begin + length) if draws else None
        for draws, begin, length in zip(drawn, begins.tolist(), lengths.tolist(), strict=True)
    ]
