"""Job `augment`: variants of a task's training texts, computed in pieces by any number of processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from data_pipeline import augment as files
from data_pipeline.augment import Word, replaced_variants, words_of
from data_pipeline.noise import noisy_variants, tagger, words_by_tag
from data_pipeline.progress import Progress
from data_pipeline.settings import AugmentConfig
from data_pipeline.tasks import Examples, encode
from data_pipeline.vocabulary import load_vocabulary
from distill.candidates import MaskedWords, Neighbours, is_maskable, name_of
from distill.encoders import Teacher
from distill.engine import barrier, rank, start_processes, sum_over_ranks, world_size
from distill.model_facts import model_config, usual_length
from distill.outputs import examples_fingerprint, teacher_fingerprint
from distill.preemption import Stopped, asked
from distill.settings import TeacherConfig

Texts = list[tuple[str, list[int]]]  # a text, and the key that seeds its draws
Variants = Callable[[Texts], list[list[str]]]


def run(config: AugmentConfig, folder: Path) -> dict[str, Any]:
    """Write RUN/augmented.jsonl; returns how many rows it has."""
    device = start_processes(timedelta(days=7))  # ranks meet at the end alone, and some have less to do
    examples = files.read(config)
    if rank() == 0:
        files.begin_pieces(folder, _made_of(config, examples))
    variants = METHODS[config.method](config, examples, device)
    judge = _Judge(config, device) if config.teacher else None
    size = config.examples_per_piece
    pieces = -(-len(examples.firsts) // size)
    missing = [number for number in range(pieces) if not files.piece_path(folder, number).is_file()]
    barrier()  # so that all deal the same ones out
    mine = missing[rank() :: world_size()]
    stopped = False
    with Progress("augment", len(mine), unit="piece", show=rank() == 0) as progress:
        for number in mine:
            if stopped := asked():
                break
            lines = list(piece_rows(config, examples, range(number * size, (number + 1) * size), variants))
            files.write_piece(folder, number, judge(lines) if judge else lines)
            progress.advance()
    if sum_over_ranks(torch.tensor(float(stopped), device=device)):  # all end together
        raise Stopped("augment: stopped between two pieces, as asked")
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
        "teacher": teacher_fingerprint(TeacherConfig(config.teacher)) if config.teacher else "",
    }


def piece_rows(config: AugmentConfig, examples: Examples, part: range, variants: Variants) -> Iterator[str]:
    """The rows of some examples' variants; of a pair each text is varied beside the other's original."""
    numbers = part[: max(0, len(examples.firsts) - part.start)]  # the last part may be shorter
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
    """The words of every text that may be replaced, each with what may stand in its place.

    The model suggests what it can mask at once; `neighbours` the rest, which without them stays as it is.
    """
    lead = model.lead  # as in the shards that models of such tokenizers are trained on
    led = [lead + text for text in texts]
    encodings = model.vocabulary.tokenizer.encode_batch(led, add_special_tokens=False)
    asked = [
        (number, word._replace(begin=word.begin - len(lead), end=word.end - len(lead)))
        for number, (text, encoding) in enumerate(zip(led, encodings, strict=True))
        for word in words_of(text, encoding, config.unit)
    ]
    ids = [encoding.ids for encoding in encodings]  # read once: every access copies them
    contexts = [
        model.context(ids[number], word) if is_maskable(word, config.unit) else None
        for number, word in asked
    ]
    best = model.best(context for context in contexts if context)
    rest = {word.of(texts[number]) for number, word in asked if not is_maskable(word, config.unit)}
    near = neighbours.best({form for own in rest for form in (own, own.lower())}) if neighbours else {}
    found: list[list[tuple[Word, list[str]]]] = [[] for _ in texts]
    for (number, word), context in zip(asked, contexts, strict=True):
        own = word.of(texts[number])
        options = (
            model.words(best[context], config.unit) if context else near.get(own, near.get(own.lower()))
        )
        found[number].append((word, options or [own]))
    return found


def _by_noise(config: AugmentConfig, examples: Examples, device: torch.device) -> Variants:
    """Tang et al.'s method."""
    tag = tagger(config.noise, config.unit)
    by_tag = words_by_tag([*examples.firsts, *examples.seconds], tag) if config.noise.replaced else {}
    vocabulary = load_vocabulary(config.model)
    mask = name_of(vocabulary, vocabulary.mask)

    def variants(texts: Texts) -> list[list[str]]:
        return [
            noisy_variants(text, tag(text), by_tag, mask, config.noise, config.variants, key)
            for text, key in texts
        ]

    return variants


class _Judge:
    """A teacher that says of every row how likely its likeliest label is."""

    BATCH = 64  # a constant: the last bits of a probability depend on a batch's other rows

    def __init__(self, config: AugmentConfig, device: torch.device):
        assert config.teacher
        from distill.measure import own_predictions  # with SciPy and scikit-learn, which no other run needs

        self.predict = own_predictions
        self.config = config
        self.vocabulary = load_vocabulary(config.teacher)
        length = usual_length(config.teacher, model_config(config.teacher, "teacher"))
        self.task = replace(config.task, max_length=length)
        # In fp32: what it leaves out must not depend on the machine's units.
        self.model = Teacher(TeacherConfig(config.teacher, "fp32"), device).model

    def __call__(self, lines: list[str]) -> list[str]:
        rows = [json.loads(line) for line in lines]
        columns = self.config.text, self.config.text_pair
        firsts, seconds = ([row[name] for row in rows] if name else [] for name in columns)
        data = encode(Examples(firsts, seconds, []), self.task, self.vocabulary)
        sure = self.predict(self.model, data, self.BATCH).softmax(-1).amax(-1).tolist()
        judged = ({**row, files.SURE: value} for row, value in zip(rows, sure, strict=True))
        return [files.as_json(row) for row in judged]


METHODS = {"tinybert": _by_model, "noise": _by_noise}


def _show(folder: Path, config: AugmentConfig, count: int = 3) -> None:
    """Print the first examples with a variant each; warn where none has any."""
    with (folder / "augmented.jsonl").open(encoding="utf-8") as lines:
        examples = groupby(map(json.loads, lines), itemgetter("origin"))
        pairs = (list(islice(rows, 2)) for _, rows in examples)
        firsts = list(islice((pair for pair in pairs if len(pair) == 2), count))
    for pair in firsts:
        texts = (row[config.text] for row in pair)
        shown = ("".join(filter(str.isprintable, text)) for text in texts)  # a terminal acts on others
        print("  {}\n  > {}".format(*shown), file=sys.stderr)
    if not firsts:
        lower = ", or a lower --confidence" if config.teacher else ""
        advice = f"give a --model that knows their words{lower}"
        print(f"warning: augment: no text got a variant; {advice}", file=sys.stderr)
