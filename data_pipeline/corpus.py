"""Documents of a corpus, streamed: txt, jsonl, or a folder saved by Hugging Face `datasets`.

A document is a list of sentences. Nothing is held in memory beyond the document at hand.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# After Latin sentence marks only where white space follows; after CJK ones always.
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")

ENCODING = "utf-8-sig"  # UTF-8, with or without a byte order mark


@dataclass
class CorpusConfig:
    """Where the text is and how it is cut into documents.

    Args:
        files: Paths or glob patterns: .txt, .jsonl, or folders saved by `datasets`.
        documents: In .txt files: `blank_line` (one sentence a line, a blank line between
            documents) or `line` (each line is a document, cut into sentences here).
        text_field: In jsonl and `datasets`: the field that holds a document's text.
    """

    files: list[str]
    documents: Literal["blank_line", "line"] = "blank_line"
    text_field: str = "text"


def corpus_files(config: CorpusConfig) -> list[Path]:
    """The files of a corpus, patterns expanded, in order. Raises ValueError where one is missing."""
    found: list[Path] = []
    for pattern in config.files:
        is_pattern = glob.has_magic(pattern) and not Path(pattern).exists()
        matches = sorted(glob.glob(pattern)) if is_pattern else [pattern]
        if not matches:
            raise ValueError(f"corpus: nothing matches {pattern}; give an existing file")
        found += map(Path, matches)
    if not found:
        raise ValueError("corpus: no file given; set --corpus.files '[FILE, ...]'")
    for path in found:
        if not path.exists():
            raise ValueError(f"corpus: {path} does not exist; give an existing file")
    return found


def read_documents(config: CorpusConfig) -> Iterator[list[str]]:
    """Yield every document of the corpus as its non-empty sentences, in file order."""
    for path in corpus_files(config):
        try:
            for document in _documents_of(path, config):
                sentences = [s for s in (sentence.strip() for sentence in document) if s]
                if sentences:
                    yield sentences
        except UnicodeDecodeError:
            raise ValueError(f"corpus: {path} is not UTF-8 text; convert it, or leave it out") from None


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


def _documents_of(path: Path, config: CorpusConfig) -> Iterator[list[str]]:
    if path.is_dir():
        yield from map(split_sentences, _saved_dataset(path, config.text_field))
    elif path.suffix == ".jsonl":
        yield from map(split_sentences, _json_lines(path, config.text_field))
    elif path.suffix == ".txt" and config.documents == "line":
        with path.open(encoding=ENCODING) as lines:
            yield from map(split_sentences, lines)
    elif path.suffix == ".txt":
        yield from _blank_line_documents(path)
    else:
        raise ValueError(f"corpus: {path} is of no known kind; give .txt, .jsonl or a saved dataset")


def whole_characters(text: str) -> str:
    """Replace halves of characters, which JSON can hold and no tokenizer takes."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def split_sentences(text: str) -> list[str]:
    """Cut a text after sentence marks and at line ends."""
    return SENTENCE_END.split(text)


def _blank_line_documents(path: Path) -> Iterator[list[str]]:
    document: list[str] = []
    with path.open(encoding=ENCODING) as lines:
        for line in lines:
            if line.strip():
                document.append(line)
            elif document:
                yield document
                document = []
    if document:
        yield document


def _json_lines(path: Path, field: str) -> Iterator[str]:
    with path.open(encoding=ENCODING) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[field]
            except (json.JSONDecodeError, KeyError, TypeError):
                raise ValueError(
                    f'corpus: {path} line {number} is no JSON object with the field "{field}"; '
                    "set --corpus.text_field"
                ) from None
            yield "" if text is None else whole_characters(str(text))


def _saved_dataset(path: Path, field: str) -> Iterator[str]:
    from datasets import Dataset, load_from_disk

    try:
        rows = load_from_disk(str(path))
    except FileNotFoundError:
        raise ValueError(f"corpus: {path} is no folder saved by `datasets`") from None
    if not isinstance(rows, Dataset):
        raise ValueError(f"corpus: {path} holds several splits; give the folder of one")
    if field not in rows.column_names:
        raise ValueError(f'corpus: {path} has no column "{field}"; it has {rows.column_names}')
    for row in rows:
        yield "" if row[field] is None else str(row[field])
