"""A corpus as pieces, each of which any process can read by itself, and the documents of a piece.

A document is a list of sentences. Plain files are cut by byte positions and tables by rows, so the
pieces, and what is made of them, are the same however many processes or nodes share them.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline import readers
from data_pipeline.readers import Piece, Source
from data_pipeline.settings import CorpusConfig
from data_pipeline.urls import is_url

SLACK = 1.25  # a piece may grow to this many times the size asked for
# After Latin sentence marks only where white space follows; after CJK ones always.
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


@dataclass
class CorpusPiece:
    """A run of neighbouring parts of the corpus: part of one file, or many small files.

    Attributes:
        place: How many parts have been read whole.
    """

    parts: list[tuple[Source, Piece]]
    place: int = 0

    @property
    def size(self) -> int:
        """Bytes of text, as far as they are known before reading."""
        return sum(piece.size for _, piece in self.parts)

    @property
    def done(self) -> int:
        """Bytes that have been read, as `size` counts them."""
        whole = sum(piece.size for _, piece in self.parts[: self.place])
        current = self.parts[self.place : self.place + 1]  # whose source may be that of other parts too
        return whole + sum(min(source.done, piece.size) for source, piece in current)

    def documents(self) -> Iterator[list[str]]:
        """Yield every document as its non-empty sentences."""
        for place, (source, piece) in enumerate(self.parts):
            self.place, source.done = place, 0
            for document in source.documents(piece):
                lines = split_sentences(document) if isinstance(document, str) else document
                sentences = [s for s in (line.strip() for line in lines) if s]
                yield from _cut(sentences)
        self.place = len(self.parts)


def _cut(sentences: list[str]) -> Iterator[list[str]]:
    """A document, in parts where it is very long."""
    begin = size = 0
    for number, sentence in enumerate(sentences, 1):
        size += len(sentence)
        if size >= readers.LONGEST_DOCUMENT or number == len(sentences):
            yield sentences[begin:number]
            begin, size = number, 0


def corpus_sources(config: CorpusConfig) -> list[Source]:
    """The files of a corpus, patterns expanded, in order. Raises ValueError where one is missing."""
    if not config.files:
        raise ValueError("corpus: no file given; set --corpus.files '[FILE, ...]'")
    paths: dict[str, str] = {}
    for pattern in config.files:
        for path in _expand(pattern):
            # Once each: a pattern may match a file that is named beside it, and spelt in another way.
            paths.setdefault(path if is_url(path) else os.path.abspath(path), path)
    by_line = config.documents == "line"
    return [readers.source(path, by_line, config.text_field) for path in paths.values()]


def _expand(pattern: str) -> list[str]:
    if pattern.startswith(readers.HUB):
        return [pattern]
    if is_url(pattern):
        return readers.expand_url(pattern)
    if os.path.exists(pattern):
        return [pattern]
    if not glob.has_magic(pattern):
        raise ValueError(f"corpus: {pattern} does not exist; give an existing file")
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches:
        raise ValueError(f"corpus: nothing matches {pattern}; give an existing file")
    return matches


def corpus_pieces(config: CorpusConfig, size: int) -> list[CorpusPiece]:
    """The corpus in pieces of about `size` bytes: files are cut and small ones put together."""
    pieces: list[CorpusPiece] = []
    total = 0.0  # of the last one
    for source in corpus_sources(config):
        for part in source.pieces(size):
            if pieces and total + part.size <= size * SLACK:
                pieces[-1].parts.append((source, part))
                total += part.size
            else:
                pieces.append(CorpusPiece([(source, part)]))
                total = part.size
    return pieces


def read_documents(config: CorpusConfig) -> Iterator[list[str]]:
    """Yield every document of the corpus as its non-empty sentences, in order."""
    for source in corpus_sources(config):
        for part in source.pieces(readers.TO_THE_END):
            yield from CorpusPiece([(source, part)]).documents()


def check_corpus(config: CorpusConfig, least: int) -> None:
    """Refuse a corpus with fewer than `least` documents, reading no further than needed."""
    count = 0
    for _ in read_documents(config):
        count += 1
        if count >= least:
            return
    names = ", ".join(config.files)
    if count == 0:
        raise ValueError(f"corpus: {names} holds no text; give a file with documents in it")
    raise ValueError(
        f"corpus: {names} holds {count} document, and sentence-pair packing draws from {least} or "
        "more; put a blank line between documents, or set --packing.method full"
    )


def split_sentences(text: str) -> list[str]:
    """Cut a text after sentence marks and at line ends."""
    return SENTENCE_END.split(text)
