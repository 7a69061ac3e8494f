"""Variants of a task's training texts: the words of a text, the draws, the files. No torch.

RUN/pieces/000000.jsonl   the variants of some hundreds of examples; a killed run redoes missing ones
RUN/augmented.jsonl       every example, followed by its variants, duplicates left out

Every draw is a function of (seed, number of the example), so the output is the same on any number of
processes. Fields are named like the columns of the file that was read: a task's settings fit both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from tokenizers import Encoding

from data_pipeline.chinese import segmenter
from data_pipeline.settings import AugmentConfig
from data_pipeline.stop_words import STOP_WORDS
from data_pipeline.tasks import Examples, read_examples
from data_pipeline.untrusted import bounded_lines, parse_json
from data_pipeline.whole import whole_file, write_whole

as_json = json.JSONEncoder(ensure_ascii=False).encode  # made once: json.dumps makes one for each row
SURE = "teacher's probability"  # of a row in a piece, where a teacher judges


class Word(NamedTuple):
    """One word of a text: its characters begin to end, and its tokens first to last."""

    begin: int
    end: int
    first: int
    last: int

    def of(self, text: str) -> str:
        """The word itself."""
        return text[self.begin : self.end]


def read(config: AugmentConfig) -> Examples:
    """The examples of the file."""
    return read_examples(config.file, config.task, labelled=config.label is not None)


def words_of(text: str, encoding: Encoding, unit: str) -> list[Word]:
    """The words that may be replaced: those of letters alone that are no stop words.

    Args:
        text: The text.
        encoding: Its tokens, without special ones.
        unit: `word` or `chinese_word`, as in the settings.
    """
    begins = None
    if unit == "chinese_word":  # else the tokenizer's own words count
        begins = np.cumsum([0, *map(len, segmenter().cut(text))])
    offsets = encoding.offsets  # the property copies all of them at every access
    tokens: dict[int, list[int]] = {}
    for token, (own, (begin, end)) in enumerate(zip(encoding.word_ids, offsets, strict=True)):
        number = own if begins is None else int(np.searchsorted(begins, begin, side="right"))
        if number is not None and end > begin:
            tokens.setdefault(number, []).append(token)
    found = []
    for places in tokens.values():
        begin, end = offsets[places[0]][0], offsets[places[-1]][1]
        begin += len(text[begin:end]) - len(text[begin:end].lstrip())  # some tokenizers count the space
        word = Word(begin, end, places[0], places[-1])
        if word.of(text).isalpha() and word.of(text).lower() not in STOP_WORDS:
            found.append(word)
    return found


def replaced_variants(
    text: str, words: Sequence[tuple[Word, Sequence[str]]], config: AugmentConfig, key: list[int]
) -> list[str]:
    """Distinct variants of a text, its words replaced by candidates.

    Args:
        text: The original.
        words: Its words, in order, each with its candidates.
        config: Number of tries, and the chance that a word is replaced.
        key: Seed of the draws.
    """
    rng = np.random.default_rng(key)
    sizes = np.array([len(options) for _, options in words], dtype=np.int64)
    shape = (config.variants, len(words))
    chosen = (rng.random(shape) * sizes).astype(np.int64)
    replaced = rng.random(shape) < config.replaced
    found: dict[str, None] = {}
    for choice, replace in zip(chosen, replaced, strict=True):
        parts, place = [], 0
        for (word, options), number, swap in zip(words, choice, replace, strict=True):
            own = word.of(text)
            parts += [text[place : word.begin], cased(options[number], own) if swap else own]
            place = word.end
        found["".join([*parts, text[place:]])] = None
    found.pop(text, None)
    return list(found)


def cased(candidate: str, word: str) -> str:
    """A candidate with the capitals that the word has."""
    if word.isupper() and len(word) > 1:
        return candidate.upper()
    return candidate[:1].upper() + candidate[1:] if word[:1].isupper() else candidate


# ---- files


def piece_path(folder: Path, number: int) -> Path:
    """The file of a piece."""
    return folder / "pieces" / f"{number:06d}.jsonl"


def row(config: AugmentConfig, first: str, second: str | None, label: str | None, origin: int) -> str:
    """One line of the output; `origin` is the number of the example that it comes from."""
    fields: dict[str, Any] = {config.text: first}
    if config.text_pair:
        fields[config.text_pair] = second
    if config.label:
        fields[config.label] = label
    return as_json({**fields, "origin": origin})


def original_rows(config: AugmentConfig, examples: Examples) -> Iterator[str]:
    """Every example as a line of the output."""
    for number, first in enumerate(examples.firsts):
        second = examples.seconds[number] if examples.seconds else None
        yield row(config, first, second, examples.labels[number] if examples.labels else None, number)


def write_piece(folder: Path, number: int, lines: Sequence[str]) -> None:
    """Write a piece, beside and renamed."""
    with whole_file(piece_path(folder, number)) as file:
        file.writelines(line + "\n" for line in lines)


def begin_pieces(folder: Path, made_of: dict[str, str]) -> None:
    """Make the folder of pieces. Raises ValueError where it holds pieces of other texts or models."""
    mark = folder / "pieces" / "made_of.json"
    if not mark.is_file():
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_whole(mark, json.dumps(made_of))
    elif _read_mark(mark) != made_of:
        raise ValueError(f"--resume: {folder} was begun with another text or model; give a new --run")


def _read_mark(mark: Path) -> Any:
    try:
        return parse_json(mark.read_bytes())
    except ValueError:
        raise ValueError(f"--resume: {mark} is damaged; give a new --run") from None


def join(folder: Path, config: AugmentConfig, examples: Examples, pieces: int) -> dict[str, int]:
    """Write RUN/augmented.jsonl from whole pieces; returns counts of what it holds and what was left out.

    A variant that is an example itself, or another's variant, is left out: a hash of every row is kept.
    So is one that the teacher is less sure of than `confidence`.
    """
    judged = config.confidence is not None
    known = {_hash(json.loads(line)) for line in original_rows(config, examples)}
    originals = original_rows(config, examples)
    written, duplicates, unsure, at = 0, 0, 0, -1
    with whole_file(folder / "augmented.jsonl") as output:
        for line, fields in _variant_rows(folder, pieces, len(examples.firsts), judged):
            while at < fields["origin"]:
                output.write(next(originals) + "\n")
                at += 1
            if judged:
                if fields.pop(SURE) < config.confidence:
                    unsure += 1
                    continue
                line = as_json(fields) + "\n"
            if (key := _hash(fields)) in known:
                duplicates += 1
                continue
            known.add(key)
            output.write(line)
            written += 1
        output.writelines(line + "\n" for line in originals)
    counts = {"examples": len(examples.firsts), "variants": written, "duplicates": duplicates}
    return {**counts, "unsure": unsure} if judged else counts


def _variant_rows(
    folder: Path, pieces: int, examples: int, judged: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of every piece in order, and their fields. Raises ValueError where a piece is damaged."""
    for number in range(pieces):
        path, last = piece_path(folder, number), 0
        try:
            with path.open(encoding="utf-8", newline="\n") as file:
                for line in bounded_lines(file, str(path)):
                    fields = parse_json(line)
                    if not last <= fields["origin"] < examples:
                        raise ValueError("its examples are out of order")
                    if judged and not 0 <= fields[SURE] <= 1:
                        raise ValueError("a row's judgement is no probability")
                    last = fields["origin"]
                    yield line, fields
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(f"--resume: {path} is damaged ({error}); remove it and resume") from None


def _hash(fields: dict[str, Any]) -> int:
    """A hash of a row's texts and label, not of the example that it comes from."""
    told = {name: value for name, value in fields.items() if name != "origin"}
    return xxhash.xxh3_64_intdigest(json.dumps(told).encode())
