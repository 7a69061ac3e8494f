"""Masking of training rows as in BERT (Devlin et al. 2019): by token, or by whole word."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xxhash

from data_pipeline.settings import MaskingConfig
from data_pipeline.tokenising import BEGINS, CONTINUES, continuing_prefix
from data_pipeline.vocabulary import Vocabulary


def mask(
    ids: Iterable[int], config: MaskingConfig, vocabulary: Vocabulary, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A row with some of its ordinary tokens masked, CONTINUES taken off its ids, and their positions.

    As in the original, a word that would exceed the number to mask is passed over.
    """
    marked = np.array(ids)
    plain = marked & ~CONTINUES
    ordinary = np.flatnonzero((plain != vocabulary.cls) & (plain != vocabulary.sep))
    count = min(config.most, round(len(marked) * config.probability))
    if config.at_least_one:
        count = max(count, 1)
    if config.unit == "token":
        chosen = rng.permutation(ordinary)[:count]
    else:
        chosen = _whole_words(ordinary, (marked & CONTINUES) > 0, count, rng, config.at_least_one)
    draw = rng.random(len(chosen))  # from 0.8 to 0.9 a token stays as it is
    plain[chosen[draw < 0.8]] = vocabulary.mask
    replaced = chosen[draw >= 0.9]
    plain[replaced] = rng.integers(0, vocabulary.size, len(replaced))
    return plain, chosen


def _whole_words(
    ordinary: np.ndarray, continues: np.ndarray, count: int, rng: np.random.Generator, one: bool
) -> np.ndarray:
    """Positions of words drawn at random, at most `count` positions, or of `one` word that is longer."""
    # A word that was cut at the row's edge, or follows a special token, begins where it is seen.
    follows = np.append(False, np.diff(ordinary) == 1)
    starts = np.flatnonzero(~(continues[ordinary] & follows))
    bounds = [*starts.tolist(), len(ordinary)]
    chosen: list[int] = []
    for number in rng.permutation(len(starts)).tolist():
        if len(chosen) >= count:
            break
        begin, end = bounds[number], bounds[number + 1]
        if len(chosen) + end - begin <= count or (one and not chosen):
            chosen += range(begin, end)
    return ordinary[np.array(chosen, dtype=np.int64)]


class DynamicMasking:
    """Masks rows anew whenever they are read: a function of seed, step and the row's tokens alone.

    Args:
        config: What is masked; `unit` is `token` or `word`.
        vocabulary: The tokenizer that the rows were made with.
        seed: Seed of the choice.
    """

    def __init__(self, config: MaskingConfig, vocabulary: Vocabulary, seed: int):
        self.config = config
        self.vocabulary = vocabulary
        self.seed = seed
        self.marks = np.zeros(vocabulary.size, dtype=np.int64)
        if config.unit == "word":
            self.marks[continuing(vocabulary)] = CONTINUES

    def __call__(self, ids: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The row `ids` (length,) of global step `step`, masked, and the positions chosen."""
        rng = np.random.default_rng([self.seed, step, xxhash.xxh3_64_intdigest(ids.tobytes())])
        return mask(ids | self.marks[ids], self.config, self.vocabulary, rng)


def continuing(vocabulary: Vocabulary) -> list[int]:
    """Ids of the tokens that go on with the word before them."""
    entries = vocabulary.tokenizer.get_vocab(with_added_tokens=False)
    prefix = continuing_prefix(vocabulary)
    if prefix is None:
        return [n for token, n in entries.items() if token[:1] not in BEGINS and token[:1].isalnum()]
    return [n for token, n in entries.items() if prefix and token.startswith(prefix)]
