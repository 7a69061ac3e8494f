"""Masking of training rows as in BERT (Devlin et al. 2019): by token, or by whole word."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.tokenising import CONTINUES, Unit
from data_pipeline.vocabulary import Vocabulary


@dataclass
class MaskingConfig:
    """Tokens replaced before training (80 % mask, 10 % random, 10 % kept).

    Args:
        probability: Share of tokens chosen; 0 masks none.
        most: At most so many a row.
        at_least_one: Choose one token even at probability 0, as the TinyBERT code does.
        unit: What is chosen together: a `token`, a whole `word`, or a `chinese_word` as jieba cuts.
    """

    probability: float = 0.0
    most: int = 20
    at_least_one: bool = False
    unit: Unit = "token"

    @property
    def active(self) -> bool:
        """Whether anything is masked."""
        return self.probability > 0 or self.at_least_one


def mask(
    ids: list[int], config: MaskingConfig, vocabulary: Vocabulary, rng: np.random.Generator
) -> list[int]:
    """Mask a row's ordinary tokens; marks of word continuation are taken off.

    As in the original, a word that would exceed the number to mask is passed over.
    """
    marked = np.array(ids)
    plain = marked & ~CONTINUES
    ordinary = np.flatnonzero((plain != vocabulary.cls) & (plain != vocabulary.sep))
    count = min(config.most, round(len(ids) * config.probability), len(ordinary))
    if config.at_least_one and len(ordinary):
        count = max(count, 1)
    if config.unit == "token":
        chosen = rng.permutation(ordinary)[:count]
    else:
        chosen = _whole_words(ordinary, (marked & CONTINUES) > 0, count, rng, config.at_least_one)
    draw = rng.random(len(chosen))
    plain[chosen[draw < 0.8]] = vocabulary.mask
    replaced = chosen[draw >= 0.9]
    plain[replaced] = rng.integers(0, vocabulary.size, len(replaced))
    return plain.tolist()


def _whole_words(
    ordinary: np.ndarray, continues: np.ndarray, count: int, rng: np.random.Generator, one: bool
) -> np.ndarray:
    """Positions of words drawn at random, at most `count` positions, or of `one` word that is longer."""
    # A word that was cut at the row's edge, or follows a special token, begins where it is seen.
    follows = np.append(False, np.diff(ordinary) == 1)
    starts = np.flatnonzero(~(continues[ordinary] & follows))
    words = np.split(ordinary, starts[1:]) if len(ordinary) else []
    chosen: list[int] = []
    for number in rng.permutation(len(words)):
        if len(chosen) + len(words[number]) <= count or (one and count and not chosen):
            chosen += words[number].tolist()
    return np.array(chosen, dtype=np.int64)
