"""Benchmark `augment`: variants of training sentences, ours against the original's data_augmentation.py.

    python -m benchmarks.augment --data FILE --model DIR [--reference DIR] [--json FILE] [--rounds N]

FILE is a .tsv with the column `sentence`, such as SST-2's train.tsv; the model a BERT with a
masked-language-model head (a pretrain run's model/). Both sides read the same model, take 20 tries, 15
candidates and p = 0.4, and get the same vectors for words of several pieces: the model's own embeddings,
as a GloVe file. Where the CPU has the units for it, ours runs in int8 too. They take turns over the same
rows, each in a process of its own. Afterwards their candidates are compared, word by word.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from benchmarks.record import import_reference, print_table, reference_folder, write_record
from benchmarks.sides import Steps, in_own_process, measure
from benchmarks.step import UNUSED, begin, quiet

if TYPE_CHECKING:
    import torch

    from data_pipeline.augment import Word
    from data_pipeline.settings import AugmentConfig

Precision = Literal["fp32", "int8"]
SCRIPT = "data_augmentation"
SPECIAL = {"[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"}  # the original would put them into a text
NOTE = (
    "Medians of {rounds} rounds of {part} sentences, in turns; 20 tries, 15 candidates, p = 0.4. "
    "The model: {layers} layers, {width} wide.\n"
    "The original as its code runs: a forward pass for every word, in fp32 "
    "with autograd's graph, every place's logits sorted whole."
)


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        data: The file of sentences.
        model: The masked language model's folder.
        reference: The original's folder TinyBERT; None measures ours alone.
        rounds: Turns of each side that count; one before them warms up.
        part: Sentences of a turn.
    """

    data: Path
    model: Path
    reference: Path | None = None
    rounds: int = 5
    part: int = 100

    def rows(self) -> list[str]:
        """The sentences of all turns, the warm-up's first."""
        with self.data.open(encoding="utf-8") as lines:
            place = next(lines).rstrip("\n").split("\t").index("sentence")
            wanted = self.part * (self.rounds + 1)
            return [
                line.rstrip("\n").split("\t")[place] for line, _ in zip(lines, range(wanted), strict=False)
            ]

    def turn(self, number: int) -> list[str]:
        """The sentences of one turn."""
        return self.rows()[number * self.part : (number + 1) * self.part]


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    try:
        settings = _settings(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        vectors, compared = Path(scratch) / "vectors.txt", Path(scratch) / "compared.json"
        in_own_process(write_vectors, settings, vectors)
        sides: dict[str, Steps] = {
            name: partial(ours, settings, vectors, precision) for name, precision in precisions().items()
        }
        if settings.reference:
            sides = {"original": partial(original, settings, vectors), **sides}
        samples, memory = measure(sides, settings.rounds)
        figures = summarise(samples, memory, settings.part)
        if settings.reference:
            in_own_process(compare, settings, vectors, compared)
            figures |= json.loads(compared.read_text(encoding="utf-8"))
    show(figures, settings)
    if options.json:
        write_record(Path(options.json), "augment", arguments, figures, samples)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.augment", description=__doc__.split("\n")[0] if __doc__ else ""
    )
    parser.add_argument("--data", required=True, metavar="FILE", help="a .tsv with the column `sentence`")
    parser.add_argument("--model", required=True, metavar="DIR", help="a BERT with its masked-word head")
    parser.add_argument("--reference", metavar="DIR", help="the original's checkout or its TinyBERT folder")
    parser.add_argument("--json", metavar="FILE", help="write the record there")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side that count")
    parser.add_argument("--part", type=int, default=100, help="sentences of a turn")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    settings = Settings(
        data=Path(options.data),
        model=Path(options.model),
        reference=reference_folder(options.reference, f"{SCRIPT}.py"),
        rounds=options.rounds,
        part=options.part,
    )
    if min(settings.rounds, settings.part) < 1:
        raise ValueError("--rounds and --part: give 1 or more")
    if not (settings.model / "config.json").is_file():
        raise ValueError(f"--model {settings.model}: no config.json there; give a model folder")
    if not settings.data.is_file():
        raise ValueError(f"--data {settings.data}: no such file")
    if len(settings.rows()) < settings.part * (settings.rounds + 1):
        raise ValueError(f"--data {settings.data}: too few rows for {settings.rounds} rounds and a warm-up")
    return settings


def write_vectors(settings: Settings, path: Path) -> None:
    """The embeddings of the words that the model knows whole, as a GloVe file."""
    from transformers import AutoModelForMaskedLM

    from data_pipeline.vocabulary import load_vocabulary
    from distill.candidates import whole_entries

    quiet()
    model = AutoModelForMaskedLM.from_pretrained(str(settings.model))
    embeddings = model.get_input_embeddings().weight.detach().numpy()
    with path.open("w", encoding="utf-8") as file:
        for word, number in whole_entries(load_vocabulary(str(settings.model))).items():
            file.write(" ".join([word, *(f"{value:.5f}" for value in embeddings[number])]) + "\n")


# ----------------------------------------------------------------------------------- the original
def original(settings: Settings, vectors: Path) -> Iterator[None]:
    """Turns of the original's own class."""
    augmentor = original_augmentor(settings, vectors)
    yield

    for number in count():
        for sentence in settings.turn(number % (settings.rounds + 1)):
            augmentor.augment(sentence)
        yield


def original_augmentor(settings: Settings, vectors: Path) -> Any:
    """The original's DataAugmentor over our weights, built as its main() does."""
    import numpy
    from safetensors.torch import load_file

    assert settings.reference
    numpy.Inf = numpy.inf  # a name that NumPy 2 dropped
    names = (SCRIPT, "transformer.modeling", "transformer.tokenization")
    script, modeling, tokenization = import_reference(settings.reference, names, UNUSED)
    logging.disable(logging.INFO)  # it logs every word's candidates
    model = modeling.BertForMaskedLM(
        modeling.BertConfig.from_json_file(str(settings.model / "config.json"))
    )
    weights = load_file(settings.model / "model.safetensors")
    decoder = "cls.predictions.decoder.weight"
    weights.setdefault(decoder, weights["bert.embeddings.word_embeddings.weight"])
    said = model.load_state_dict(weights, strict=False)
    if any(not name.startswith("bert.pooler") for name in said.missing_keys):
        raise ValueError(
            f"{settings.model}: weights that the original needs are missing: {said.missing_keys}"
        )
    model.eval()
    tokenizer = tokenization.BertTokenizer.from_pretrained(str(settings.model))
    with vectors.open(encoding="utf-8") as lines:
        known = sum(1 for _ in lines)
    embeddings, words, names_of = script.prepare_embedding_retrieval(str(vectors), known)
    return script.DataAugmentor(model, tokenizer, embeddings, words, names_of, 15, 20, 0.4)


# ------------------------------------------------------------------------------------------ ours
def precisions() -> dict[str, Precision]:
    """Our sides on this machine, by their names."""
    import torch

    from distill.int8 import has_int8

    both = has_int8(torch.device("cpu"))
    return {"ours": "fp32", "ours_int8": "int8"} if both else {"ours": "fp32"}


def ours(settings: Settings, vectors: Path, precision: Precision) -> Iterator[None]:
    """Turns of what `distillery augment` is made of."""
    from data_pipeline.tasks import Examples
    from distill.augment import METHODS, piece_rows

    config, device = our_config(settings, vectors, precision), begin()
    variants = METHODS["tinybert"](config, Examples([], [], []), device)
    yield

    for number in count():
        examples = Examples(settings.turn(number % (settings.rounds + 1)), [], [])
        list(piece_rows(config, examples, range(settings.part), variants))
        yield


def our_config(settings: Settings, vectors: Path, precision: Precision) -> AugmentConfig:
    from data_pipeline.settings import AugmentConfig

    return AugmentConfig(
        str(settings.data), str(settings.model), label=None, vectors=str(vectors), precision=precision
    )


# ------------------------------------------------------------------------------------- compared
def compare(settings: Settings, vectors: Path, target: Path) -> None:
    """Write what share of the first turn's words get the original's candidates in fp32.

    And by our side's name what share of the original's candidates are among its own, for the words that the
    model suggests for.
    """
    from distill.candidates import is_maskable

    augmentor, device = original_augmentor(settings, vectors), begin()
    found = {
        name: our_candidates(our_config(settings, vectors, precision), settings.turn(0), device)
        for name, precision in precisions().items()
    }
    shared: dict[str, list[float]] = {name: [] for name in found}
    same = []
    for place, (sentence, word, own) in enumerate(found["ours"]):
        tokens = augmentor.tokenizer.basic_tokenizer.tokenize(sentence)
        number = len(augmentor.tokenizer.basic_tokenizer.tokenize(sentence[: word.begin]))
        theirs = set(augmentor._word_augment(sentence, number, tokens[number])) - SPECIAL
        none = theirs == {tokens[number]} and own == {word.of(sentence)}  # theirs has lost its accents
        same.append(none or theirs == own)
        for name, words in found.items():
            if is_maskable(word, "word") and theirs and not none:
                shared[name].append(len(theirs & words[place].candidates) / len(theirs))
    figures = {"words": len(same), "same_candidates": round(mean(same), 5)}
    figures |= {f"{name}_shared_candidates": round(mean(values), 5) for name, values in shared.items()}
    target.write_text(json.dumps(figures))


class Found(NamedTuple):
    """A word of a sentence, and what may stand in its place."""

    sentence: str
    word: Word
    candidates: set[str]


def our_candidates(config: AugmentConfig, sentences: list[str], device: torch.device) -> list[Found]:
    from distill.augment import masked_candidates
    from distill.candidates import MaskedWords, Neighbours

    model = MaskedWords(config, device)
    found = masked_candidates(config, model, Neighbours(config, model), sentences)
    return [
        Found(sentence, word, set(own))
        for sentence, pairs in zip(sentences, found, strict=True)
        for word, own in pairs
    ]


# ---------------------------------------------------------------------------------- what it says
def summarise(samples: dict[str, list[float]], memory: dict[str, float], part: int) -> dict[str, float]:
    """Sentences per second of each side and the ratios, where the original was measured."""
    seconds = {name.removesuffix("_seconds"): median(values) for name, values in samples.items()}
    figures = {f"{name}_sentences_per_s": round(part / value, 3) for name, value in seconds.items()}
    figures |= {name: round(mb, 1) for name, mb in memory.items() if name.endswith("peak_mb")}
    if "original" in seconds:
        ratios = {
            f"speedup{name.removeprefix('ours')}": round(seconds["original"] / value, 3)
            for name, value in seconds.items()
            if name != "original"
        }
        figures = {**ratios, **figures}
    return figures


def show(figures: dict[str, float], settings: Settings) -> None:
    """Print the figures as a table, a row for each side."""
    sides = [key.removesuffix("_peak_mb") for key in figures if key.endswith("_peak_mb")]
    rows = []
    for name in sides:
        ratio = figures.get(f"speedup{name.removeprefix('ours')}")
        shared = figures.get(f"{name}_shared_candidates")
        rows.append(
            (
                name.replace("_", ", "),
                f"{figures[f'{name}_sentences_per_s']:,.1f}",
                f"{figures[f'{name}_peak_mb']:,.0f}",
                "" if ratio is None else f"{ratio:.2f}",
                "" if shared is None else f"{100 * shared:.2f} %",
            )
        )
    shape = json.loads((settings.model / "config.json").read_text(encoding="utf-8"))
    note = NOTE.format(
        rounds=settings.rounds,
        part=settings.part,
        layers=shape["num_hidden_layers"],
        width=shape["hidden_size"],
    )
    heads = ("", "sentences/s", "peak MB", "times the original", "its candidates")
    print_table("Augmentation as TinyBERT's", heads, rows, note)
    if settings.reference:
        print(f"In fp32 the same candidates for {100 * figures['same_candidates']:.2f} % ", end="")
        print(f"of {figures['words']:.0f} words")
    else:
        print("Ours alone: for the comparison, --reference DIR names a checkout of the original")


if __name__ == "__main__":
    sys.exit(main())
