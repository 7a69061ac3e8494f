"""Job `predict`: texts to labels, from standard input or a file, a window of them at a time.

What needs torch is imported where a model is loaded: an exported model answers without it.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from data_pipeline.columns import ENCODING, line_ends, rows_of
from data_pipeline.model_folder import model_folder
from data_pipeline.settings import TaskConfig, usable_cores
from data_pipeline.tasks import Encoded, Examples, encode
from data_pipeline.untrusted import bounded_lines, one_field
from data_pipeline.vocabulary import load_vocabulary
from distill.model_facts import model_config, usual_length
from distill.onnx_runtime import FILES, open_session, run_session
from distill.settings import PredictConfig

Forward = Callable[[dict[str, np.ndarray]], np.ndarray]  # ids, mask and segments to logits


def run(config: PredictConfig) -> int:
    """Answer every text; returns the exit code. Raises ValueError naming a line that can't be read."""
    try:
        with opened(config.input, form_of(config)) as source, _written(config.output) as target:
            answer(config, source, target)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads has enough; Python would say so again on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def answer(config: PredictConfig, source: TextIO, target: TextIO) -> None:
    """Write an answer for each text of `source`, in order, a window at a time."""
    vocabulary = load_vocabulary(config.model)
    model = model_config(config.model, "model", config.classes, any_kind=config.runtime != "torch")
    length = config.max_length or usual_length(config.model, model)
    task = TaskConfig(train="", dev="", text_pair=config.text_pair, max_length=length)
    writer = Writer(config, model, target)
    rows = texts(config, source)
    forward: Forward | None = None
    window = 1 if source.isatty() else config.window
    while some := list(islice(rows, window)):
        forward = forward or load(config)
        seconds = [row[1] for row in some] if config.text_pair else []
        data = encode(Examples([row[0] for row in some], seconds, []), task, vocabulary)
        for row, values in zip(some, logits_of(forward, data, config.batch_size), strict=True):
            writer.write(row, values)
        target.flush()


def logits_of(forward: Forward, data: Encoded, batch_size: int) -> np.ndarray:
    """Logits (examples, outputs) in the examples' order, from batches of like lengths."""
    order = np.argsort(data.lengths, kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    answers = np.concatenate([forward(data.padded(batch)) for batch in batches])
    result = np.empty_like(answers)
    result[order] = answers
    return result


def load(config: PredictConfig) -> Forward:
    """The model as a function of padded ids, mask and segments."""
    if config.runtime != "torch":
        file = Path(model_folder(config.model)) / FILES[config.runtime]
        session = open_session(file, usable_cores())
        return lambda padded: run_session(session, padded)
    import torch

    from distill.encoders import Batch, load_classifier, model_inputs
    from distill.products import speed_up_products
    from distill.read_places import reading

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_classifier(config.model, config.classes).to(device).requires_grad_(False)
    speed_up_products(model)

    @torch.no_grad()
    def forward(padded: dict[str, np.ndarray]) -> np.ndarray:
        batch = Batch(**{name: torch.from_numpy(part) for name, part in padded.items()}).to(device)
        with reading(model, None):
            return model(**model_inputs(model, batch)).logits.float().cpu().numpy()

    return forward


# ---- texts in


def texts(config: PredictConfig, source: TextIO) -> Iterator[list[str]]:
    """The text, or both of a pair, of each example. Raises ValueError naming the line of a wrong one."""
    form = form_of(config)
    named = "standard input" if config.input == "-" else config.input
    if form == "lines":
        yield from _lines(source, named, config.text_pair is not None)
        return
    columns = [config.text, *([config.text_pair] if config.text_pair else [])]
    yield from rows_of(source, form, f"input: {named}", columns, config.header)


def form_of(config: PredictConfig) -> str:
    """What the input is: lines, tsv, csv or jsonl."""
    if config.format != "auto":
        return config.format
    ending = Path(config.input).suffix[1:].lower()
    return ending if ending in ("tsv", "csv", "jsonl") else "lines"


def _lines(source: TextIO, named: str, pairs: bool) -> Iterator[list[str]]:
    for number, line in enumerate(bounded_lines(source, f"input: {named}"), 1):
        text = line.rstrip("\r\n")
        fields = text.split("\t") if pairs else [text]
        if pairs and len(fields) != 2:
            raise ValueError(
                f"input: {named} line {number} has {len(fields) - 1} tabs; give TEXT, tab, TEXT"
            )
        yield fields


@contextmanager
def opened(path: str, form: str) -> Iterator[TextIO]:
    """A file or standard input as UTF-8."""
    if path != "-":
        with open(path, encoding=ENCODING, newline=line_ends(form)) as file:
            yield file
        return
    piped = io.TextIOWrapper(sys.stdin.buffer, encoding=ENCODING, newline=line_ends(form))
    try:
        yield piped
    finally:
        piped.detach()


# ---- answers out


class Writer:
    """Answers as lines of JSON or of tab-separated fields."""

    def __init__(self, config: PredictConfig, model: dict[str, Any], target: TextIO):
        self.target, self.json = target, config.answers == "jsonl"
        self.names = ["text", *(["text_pair"] if config.text_pair else [])]
        labels = model.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        self.labels = [labels[key] for key in sorted(labels, key=int)]
        number = model.get("problem_type") == "regression" or len(self.labels) == 1
        self.several = model.get("problem_type") == "multi_label_classification"
        self.labels = [] if number else self.labels
        if not self.json:
            heading = ["label", *self.labels] if self.labels else ["value"]
            target.write("\t".join(map(one_field, heading)) + "\n")

    def write(self, row: list[str], logits: np.ndarray) -> None:
        """One answer."""
        found, values = self._answer(logits.astype(np.float64))
        if self.json:
            line = json.dumps({**dict(zip(self.names, row, strict=True)), **found}, ensure_ascii=False)
        else:
            told = next(iter(found.values()))  # the label, the labels, or the number
            line = "\t".join([one_field(_told(told)), *(f"{value:.6f}" for value in values)])
        self.target.write(line + "\n")

    def _answer(self, logits: np.ndarray) -> tuple[dict[str, Any], list[float]]:
        """What the logits say, and the probability of each label; of a regression the number alone."""
        if not self.labels:
            return {"value": round(float(logits[0]), 6)}, []
        weights = 1 / (1 + np.exp(-logits)) if self.several else _softmax(logits)
        each = dict(zip(self.labels, (round(float(value), 6) for value in weights), strict=True))
        if self.several:
            held = [name for name, probability in each.items() if probability > 0.5]
            return {"labels": held, "probabilities": each}, [*weights]
        best = self.labels[int(weights.argmax())]
        return {"label": best, "probability": each[best], "probabilities": each}, [*weights]


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def _told(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


@contextmanager
def _written(path: str) -> Iterator[TextIO]:
    """Standard output, or a file that is there once it is whole."""
    if path == "-":
        yield sys.stdout
        return
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # a device or a pipe
        with target.open("w", encoding="utf-8") as file:
            yield file
        return
    number, partial = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(number, "w", encoding="utf-8") as file:
            yield file
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, target)
    finally:
        Path(partial).unlink(missing_ok=True)


def _umask() -> int:
    """What new files may not have, which can be read by setting it alone."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
