"""Job `augment`: variants of a task's training texts, computed in pieces by any number of processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from data_pipeline import augment as files
from data_pipeline.augment import AugmentConfig, Word, replaced_variants, words_of
from data_pipeline.noise import noisy_variants, tagger, words_by_tag
from data_pipeline.tasks import Examples
from data_pipeline.vocabulary import load_vocabulary
from distill.candidates import (
    LONGEST_CHINESE_WORD,
    Context,
    MaskedWords,
    Neighbours,
    chinese_words,
    name_of,
    whole_word,
)
from distill.engine import barrier, rank, start_processes, world_size
from distill.outputs import examples_fingerprint, teacher_fingerprint
from distill.progress import TrainingProgress
from distill.settings import TeacherConfig

Texts = list[tuple[str, list[int]]]  # a text, and what its draws are a function of
Variants = Callable[[Texts], list[list[str]]]


def run(config: AugmentConfig, folder: Path) -> dict[str, Any]:
    """Write RUN/augmented.jsonl; returns how many rows it has."""
    device = start_processes(timedelta(days=7))  # ranks meet at the end alone, and some have less to do
    examples = files.read(config)
    if rank() == 0:
        files.begin_pieces(folder, _made_of(config, examples))
    variants = METHODS[config.method](config, examples, device)
    size = config.examples_per_piece
    pieces = -(-len(examples.firsts) // size)
    missing = [number for number in range(pieces) if not files.piece_path(folder, number).is_file()]
    barrier()  # so that all deal the same ones out
    mine = missing[rank() :: world_size()]
    with TrainingProgress("augment", 0, len(mine), show=rank() == 0) as progress:
        for number in mine:
            lines = list(piece_rows(config, examples, range(number * size, (number + 1) * size), variants))
            files.write_piece(folder, number, lines)
            progress.advance()
    barrier()
    counts = files.join(folder, config, examples, pieces) if rank() == 0 else {}
    barrier()
    if rank() == 0:
        _show(folder, config)
    return {**counts, "file": str(folder / "augmented.jsonl"), "processes": world_size()}


def _made_of(config: AugmentConfig, examples: Examples) -> dict[str, str]:
    """Fingerprints of what variants come from; settings are compared by the launcher."""
    return {
        "examples": examples_fingerprint(examples, 0),
        "labels": examples_fingerprint(Examples(examples.labels, [], []), 0),
        "model": teacher_fingerprint(TeacherConfig(config.model)),
    }


def piece_rows(config: AugmentConfig, examples: Examples, part: range, variants: Variants) -> Iterator[str]:
    """The rows of some examples' variants; of a pair each text is varied beside the other's original."""
    numbers = part[: max(0, len(examples.firsts) - part.start)]
    columns = [examples.firsts, examples.seconds] if examples.seconds else [examples.firsts]
    texts = [(column[n], [config.seed, n, place]) for n in numbers for place, column in enumerate(columns)]
    found = iter(variants(texts))
    for number in numbers:
        own = [column[number] for column in columns]
        label = examples.labels[number] if examples.labels else None
        for place in range(len(own)):
            for variant in next(found):
                both = [*own[:place], variant, *own[place + 1 :], None]
                yield files.row(config, both[0] or "", both[1], label, number)


def _by_model(config: AugmentConfig, examples: Examples, device: torch.device) -> Variants:
    """TinyBERT's method."""
    model = MaskedWords(config, device)
    neighbours = Neighbours(config, model) if config.unit == "word" else None

    def variants(texts: Texts) -> list[list[str]]:
        found = masked_candidates(config, model, neighbours, [text for text, _ in texts])
        return [
            replaced_variants(text, pairs, config, key)
            for (text, key), pairs in zip(texts, found, strict=True)
        ]

    return variants


def masked_candidates(
    config: AugmentConfig, model: MaskedWords, neighbours: Neighbours | None, texts: list[str]
) -> list[list[tuple[Word, list[str]]]]:
    """The words of every text that may be replaced, each with what may stand in its place."""
    lead = model.lead  # as in the shards that models of such tokenizers are trained on
    led = [lead + text for text in texts]
    encodings = model.vocabulary.tokenizer.encode_batch(led, add_special_tokens=False)
    words = [
        [word._replace(begin=word.begin - len(lead), end=word.end - len(lead)) for word in found]
        for found in (words_of(text, e, config.unit) for text, e in zip(led, encodings, strict=True))
    ]
    ids = [encoding.ids for encoding in encodings]
    find = _chinese_candidates if config.unit == "chinese_word" else _candidates
    options = find(config, model, neighbours, texts, ids, words)
    return [list(zip(own, found, strict=True)) for own, found in zip(words, options, strict=True)]


def _candidates(
    config: AugmentConfig,
    model: MaskedWords,
    neighbours: Neighbours | None,
    texts: list[str],
    ids: list[list[int]],
    words: list[list[Word]],
) -> list[list[list[str]]]:
    """Candidates of every word of every text: the model's for single tokens, neighbours for others."""
    assert neighbours is not None
    special = model.special
    single = [[w.first == w.last for w in own] for own in words]
    contexts = [
        [model.context(t, w) if one else None for w, one in zip(own, ones, strict=True)]
        for t, own, ones in zip(ids, words, single, strict=True)
    ]
    best = model.best(context for own in contexts for context in own if context)
    several = {
        w.of(text)
        for text, own, ones in zip(texts, words, single, strict=True)
        for w, one in zip(own, ones, strict=True)
        if not one
    }
    near = neighbours.best({form for word in several for form in (word, word.lower())})

    def options(text: str, word: Word, one: bool, context: Context | None) -> list[str]:
        own = word.of(text)
        if not one:
            return near.get(own) or near.get(own.lower()) or [own]
        tokens = best[context][0] if context else []
        entries = (whole_word(model.vocabulary, int(t)) for t in tokens if int(t) not in special)
        return list(filter(None, entries)) or [own]

    return [
        [options(text, *entry) for entry in zip(own, ones, found, strict=True)]
        for text, own, ones, found in zip(texts, words, single, contexts, strict=True)
    ]


def _chinese_candidates(
    config: AugmentConfig,
    model: MaskedWords,
    neighbours: Neighbours | None,
    texts: list[str],
    ids: list[list[int]],
    words: list[list[Word]],
) -> list[list[list[str]]]:
    """Candidates of every Chinese word: known words of characters that the model gives at its places."""

    def by_character(word: Word) -> bool:
        tokens = word.last - word.first + 1
        return tokens == word.end - word.begin <= LONGEST_CHINESE_WORD

    contexts = [
        [model.context(t, w) if by_character(w) else None for w in own]
        for t, own in zip(ids, words, strict=True)
    ]
    best = model.best(context for own in contexts for context in own if context)

    def options(text: str, word: Word, context: Context | None) -> list[str]:
        own = word.of(text)
        if context is None:
            return [own]
        places = [[model.name(token) for token in tokens] for tokens in best[context]]
        return chinese_words(places, config.candidates) or [own]

    return [
        [options(text, word, context) for word, context in zip(own, found, strict=True)]
        for text, own, found in zip(texts, words, contexts, strict=True)
    ]


def _by_noise(config: AugmentConfig, examples: Examples, device: torch.device) -> Variants:
    """Tang et al.'s method."""
    tag = tagger(config.noise, config.unit)
    by_tag = words_by_tag([*examples.firsts, *examples.seconds], tag)
    vocabulary = load_vocabulary(config.model)
    mask = name_of(vocabulary, vocabulary.mask)

    def variants(texts: Texts) -> list[list[str]]:
        return [
            noisy_variants(text, tag(text), by_tag, mask, config.noise, config.variants, key)
            for text, key in texts
        ]

    return variants


METHODS = {"tinybert": _by_model, "noise": _by_noise}


def _show(folder: Path, config: AugmentConfig, examples: int = 3) -> None:
    """Tell the first examples with a variant each."""
    shown, last = 0, -1
    with (folder / "augmented.jsonl").open(encoding="utf-8") as lines:
        original: dict[str, Any] = {}
        for line in lines:
            fields = json.loads(line)
            if fields["origin"] != last:
                original, last, fresh = fields, fields["origin"], True
            elif fresh and shown < examples:
                fresh, shown = False, shown + 1
                both = (original[config.text], fields[config.text])
                shown_texts = ("".join(filter(str.isprintable, text)) for text in both)
                print("  {}\n  > {}".format(*shown_texts), file=sys.stderr)
            elif shown == examples:
                return
