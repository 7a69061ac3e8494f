"""A model in torch beside the same in onnxruntime, fp32 and int8: latency, throughput, accuracy on dev.

    python -m benchmarks.export --model DIR --train FILE --dev FILE [--rounds 100] [--json FILE]

Sides take turns at every batch; all run on the CPU with the same number of threads ($OMP_NUM_THREADS, or
torch's default), onnxruntime's without spinning, which would take the cores from the side whose turn it is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.record import print_table, take_turns, write_record
from data_pipeline.settings import TaskConfig
from data_pipeline.tasks import Encoded, encode_dev, label_set
from data_pipeline.vocabulary import load_vocabulary
from distill.checks import check_export
from distill.encoders import load_classifier, model_inputs
from distill.export import TORCH, onnx_models, write_files
from distill.measure import dev_scores, predict
from distill.model_facts import model_config, own_labels
from distill.settings import ExportConfig
from distill.sources import task_batch

SIDES = {TORCH: "torch", "onnxruntime fp32": "onnx", "onnxruntime int8": "int8"}
BATCHES = (1, 32)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True, help="A fine-tuned model folder.")
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--text", default="sentence")
    parser.add_argument("--label", default="label")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    disable_progress_bar()
    task = TaskConfig(
        options.train, options.dev, text=options.text, label=options.label, max_length=options.max_length
    )
    config = ExportConfig(options.model, task)
    try:
        check_export(config)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "onnx").mkdir()
        model = load_classifier(options.model)
        write_files(model, Path(name), config)
        figures, samples = measure(
            {TORCH: model, **onnx_models(Path(name), model.config)}, config, options.rounds
        )
    show(figures, options.rounds)
    if options.json:
        typed = sys.argv[1:] if arguments is None else arguments
        write_record(options.json, "export", typed, figures, samples, ["onnxruntime", "onnx"])
    return 0


def measure(
    models: dict[str, Any], config: ExportConfig, rounds: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Figures by name, and the milliseconds of every timed forward that they come from."""
    assert config.task
    labels = label_set(config.task, own_labels(model_config(config.model, "model")))
    dev = encode_dev(config.task, load_vocabulary(config.model), labels)["dev"]
    figures: dict[str, float] = {"threads": torch.get_num_threads()}
    samples: dict[str, list[float]] = {}
    for name, model in models.items():
        scores = dev_scores({"dev": predict(model, dev)}, {"dev": dev.labels}, config.task)
        figures[f"{SIDES[name]}_{config.task.selection}"] = round(scores[config.task.selection], 5)
    for batch in BATCHES:
        timed = take_turns(
            {name: Forwards(model, dev, batch, rounds) for name, model in models.items()}, rounds
        )
        samples |= {f"{SIDES[name]}_ms_{batch}": times for name, times in timed.items()}
        middle = {name: median(times) for name, times in timed.items()}
        for name, side in SIDES.items():
            figures[f"{side}_ms_{batch}"] = middle[name]
            figures[f"{side}_speedup_{batch}"] = round(middle[TORCH] / middle[name], 2)
    return figures, samples


class Forwards:
    """A model over batches of neighbours in length, evenly spread over the data; each call times the next.

    The first, untimed, warms up.
    """

    def __init__(self, model: Any, data: Encoded, size: int, rounds: int):
        self.forward: Callable[..., Any] = torch.no_grad()(model)
        order = np.argsort(data.lengths, kind="stable")
        begins = np.linspace(0, len(data) - size, rounds).astype(int)
        batches = [task_batch(data, order[begin : begin + size]) for begin in begins]
        self.inputs = [model_inputs(model, batch) for batch in batches]
        self.turn = 0
        for inputs in self.inputs[:: max(1, rounds // 5)]:
            self.forward(**inputs)

    def __call__(self) -> float:
        inputs = self.inputs[self.turn]
        self.turn += 1
        begin = time.perf_counter()
        self.forward(**inputs)
        return 1000 * (time.perf_counter() - begin)


def show(figures: dict[str, float], rounds: int) -> None:
    """Print the figures as a table, a row for each side."""
    metric = next(name for name in figures if name.startswith("torch_")).removeprefix("torch_")
    heading = ["", metric]
    for batch in BATCHES:
        heading += [f"ms, batch {batch}", "speed-up"]
    rows = []
    for name, side in SIDES.items():
        row = [name, f"{100 * figures[f'{side}_{metric}']:.2f}"]
        for batch in BATCHES:
            row += [f"{figures[f'{side}_ms_{batch}']:.2f}", f"{figures[f'{side}_speedup_{batch}']:.2f}"]
        rows.append(row)
    note = f"Medians of {rounds} rounds, sides in turn, {figures['threads']} threads each."
    print_table("A model in torch and in onnxruntime", heading, rows, note)


if __name__ == "__main__":
    sys.exit(main())
