"""Tokenised documents to training rows: sentence pairs as in BERT and TinyBERT, or full sentences.

A row is one sequence with its special tokens, and the position where its second segment begins
(its length where there is none). The pair algorithm is that of Devlin et al. 2019 (BERT), with
TinyBERT's settings; every draw comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data_pipeline.masking import mask
from data_pipeline.settings import PackingConfig
from data_pipeline.vocabulary import Vocabulary

Document = list[list[int]]  # token ids of each sentence


class Row(NamedTuple):
    """One training sequence: ids with special tokens, and where the second segment begins."""

    ids: list[int]
    boundary: int


def pack(
    documents: list[Document],
    config: PackingConfig,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> Iterator[Row]:
    """Pack a window of documents into rows, all draws from `rng`."""
    if config.method == "full":
        rows = _full_rows(documents, config.max_length, vocabulary)
    else:
        rows = _pair_rows(documents, config, vocabulary, rng)
    if not config.masking.active:
        return rows
    return (Row(mask(row.ids, config.masking, vocabulary, rng)[0].tolist(), row.boundary) for row in rows)


def _full_rows(documents: list[Document], max_length: int, vocabulary: Vocabulary) -> Iterator[Row]:
    room = max_length - 2
    for document in documents:
        current: list[int] = []
        for sentence in document:
            if current and len(current) + len(sentence) > room:
                yield _single(current, vocabulary)
                current = []
            current = current + sentence
            whole = max(0, (len(current) - 1) // room) * room  # above 0 for a sentence longer than a row
            for start in range(0, whole, room):
                yield _single(current[start : start + room], vocabulary)
            current = current[whole:]
        if current:
            yield _single(current, vocabulary)


def _single(tokens: list[int], vocabulary: Vocabulary) -> Row:
    return Row([vocabulary.cls, *tokens, vocabulary.sep], len(tokens) + 2)


def _pair_rows(
    documents: list[Document],
    config: PackingConfig,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> Iterator[Row]:
    room = config.max_length - 2 - vocabulary.separators_between
    # A random segment comes from another document, of which a window of one has none.
    contiguous = config.method == "contiguous_pairs" or len(documents) < 2
    ends = np.cumsum([len(document) for document in documents])
    for index, document in enumerate(documents):
        position = 0
        while position < len(document):
            target = room
            if rng.random() < config.short_probability:
                target = int(rng.integers(2, room + 1))
            chunk = _take_chunk(document, position, target)
            first_end = int(rng.integers(1, len(chunk))) if len(chunk) > 1 else 1
            first = [token for sentence in chunk[:first_end] for token in sentence]
            if not contiguous and (len(chunk) == 1 or rng.random() < 0.5):
                other = _other_document(index, ends, rng)
                second = _random_segment(documents[other], target - len(first), rng)
                position += first_end  # sentences that the random segment displaced are used again
            else:
                second = [token for sentence in chunk[first_end:] for token in sentence]
                position += len(chunk)
            yield _join(*_truncate(first, second, room, rng), vocabulary)


def _take_chunk(document: Document, position: int, target: int) -> Document:
    """Sentences from `position` on until they reach `target` tokens."""
    length, end = 0, position
    while end < len(document) and length < target:
        length += len(document[end])
        end += 1
    return document[position:end]


def _other_document(index: int, ends: np.ndarray, rng: np.random.Generator) -> int:
    """A document other than `index`, drawn in proportion to its number of sentences."""
    begin = ends[index - 1] if index else 0
    draw = rng.integers(0, ends[-1] - (ends[index] - begin))
    if draw >= begin:
        draw += ends[index] - begin
    return int(np.searchsorted(ends, draw, side="right"))


def _random_segment(document: Document, target: int, rng: np.random.Generator) -> list[int]:
    start = int(rng.integers(0, len(document)))
    segment: list[int] = []
    for sentence in document[start:]:
        segment = segment + sentence
        if len(segment) >= target:
            break
    return segment


def _truncate(
    first: list[int], second: list[int], room: int, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Drop a token of the longer side (the second where equal), from a random end, until both fit."""
    extra = len(first) + len(second) - room
    if extra <= 0:
        return first, second
    difference = len(first) - len(second)
    ahead = min(extra, abs(difference))  # taken from the longer side alone; then in turns
    turns = extra - ahead
    from_first = (ahead if difference > 0 else 0) + turns // 2
    from_second = extra - from_first
    return _shorten(first, from_first, rng), _shorten(second, from_second, rng)


def _shorten(tokens: list[int], count: int, rng: np.random.Generator) -> list[int]:
    """Drop `count` tokens, each from the front or the back by a coin."""
    front = int(rng.binomial(count, 0.5))
    return tokens[front : len(tokens) - (count - front)]


def _join(first: list[int], second: list[int], vocabulary: Vocabulary) -> Row:
    if not second:
        return _single(first, vocabulary)
    head = [vocabulary.cls, *first, *[vocabulary.sep] * vocabulary.separators_between]
    return Row([*head, *second, vocabulary.sep], len(head))
