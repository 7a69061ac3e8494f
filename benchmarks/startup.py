"""From a command to its first training step: the ranks alone, and `distillery` on every place that is here.

    python -m benchmarks.startup [--places local,slurm,ray] [--rounds 3] [--json FILE]

A general distillation of tiny models, two processes in each place; on Slurm on two nodes. A place is left
out where it is not at hand: Slurm without sbatch, Ray where it is not installed. The ranks alone are
started as `local` starts them, in a run folder made beforehand: what it takes more is the launcher's own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.record import print_table, take_turns, write_record

STEPS = 20
SETTINGS = [
    "--teacher.precision=fp32",
    "--student.layers=2",
    "--student.hidden_size=24",
    "--student.heads=4",
    "--student.intermediate_size=48",
    "--stage.batch_size=16",
    "--record.log_every=1",
    "--record.save_every=1000",
]
PLACES = {
    "local": ["--on=local", "--processes=2"],
    "slurm": ["--on=slurm", "--nodes=2", "--processes=1", "--time=10"],
    "ray": ["--on=ray", "--processes=2"],
}
COMMAND = [sys.executable, "-m", "launcher.cli"]
PATIENCE = 900  # seconds: a job that was submitted and fails makes no command fail


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    here = [name for name in PLACES if is_here(name)]
    parser.add_argument("--places", type=lambda text: text.split(","), default=here)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="Scratch space that all nodes see; else a temporary one."
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if missing := [name for name in options.places if name not in here]:
        parser.error(f"--places: {', '.join(missing)} is not here; here are {', '.join(here)}")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        settings = [*SETTINGS, *make_input(folder)]
        sides: dict[str, Callable[[], float]] = {"alone": partial(alone, folder, settings)}
        for place in options.places:
            sides[place] = partial(distillery, folder, settings, place)
        alone(folder, settings)  # compiles what is compiled once, fills the page cache
        samples = take_turns(sides, options.rounds)
    figures = summarise(samples)
    show(figures, options.rounds)
    if options.json:
        typed = sys.argv[1:] if arguments is None else arguments
        write_record(options.json, "startup", typed, figures, samples, ["ray"])
    return 0


def is_here(place: str) -> bool:
    """Whether this machine can start jobs there."""
    if place == "slurm":
        return shutil.which("sbatch") is not None
    return place == "local" or importlib.util.find_spec("ray") is not None


def alone(folder: Path, settings: list[str]) -> float:
    """Seconds to the first step of ranks that are started in a begun run folder."""
    from launcher import local, runs
    from launcher.settings import parse

    run = Path(tempfile.mkdtemp(prefix="alone-", dir=folder))
    runs.begin(run, "general", parse("general", settings)[0])
    environment = local.environment(2, {**os.environ}) | local.ALONE
    return first_step(local.command("general", str(run), 2), run, environment)


def distillery(folder: Path, settings: list[str], place: str) -> float:
    """Seconds to the first step of the command on a place."""
    run = Path(tempfile.mkdtemp(prefix=f"{place}-", dir=folder)) / "run"
    environment = {"RAY_USAGE_STATS_ENABLED": "0", **os.environ}
    return first_step([*COMMAND, "general", *settings, *PLACES[place], f"--run={run}"], run, environment)


def first_step(command: list[str], run: Path, environment: dict[str, str]) -> float:
    """Start a command and let its run end; returns the seconds until it had recorded a step.

    Raises RuntimeError where the command fails, or the run has no end.
    """
    with (run.parent / "said.txt").open("w+", encoding="utf-8") as said:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        seconds = None
        while not (run / "summary.json").is_file():
            time.sleep(0.01)
            if seconds is None and (run / "metrics.jsonl").is_file():
                seconds = time.monotonic() - started
            if process.poll() or time.monotonic() - started > PATIENCE:
                process.terminate()
                raise RuntimeError(f"{command}: {said.seek(0) or said.read()}")
        process.wait()
    assert seconds is not None
    return seconds


def make_input(folder: Path, steps: int = STEPS) -> list[str]:
    """A tiny teacher of random weights and shards for it; returns the settings of so many steps on them."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from data_pipeline.grammar import write_task
    from data_pipeline.words import SPECIAL

    write_task(folder, 2000, 10, 0)
    text = (folder / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    sentences = [line.split("\t")[0] for line in text]
    (folder / "corpus.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    words = [*SPECIAL, *sorted({w for s in sentences for w in s.split()})]
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(words),
        num_hidden_layers=4,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(shape).save_pretrained(folder / "teacher")
    vocabulary = {word: number for number, word in enumerate(words)}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder / "teacher")
    corpus = json.dumps([str(folder / "corpus.txt")])
    pregenerate = ["pregenerate", f"--corpus.files={corpus}", f"--tokenizer={folder}/teacher"]
    options = ["--packing.max_length=32", "--packing.method=full", "--workers=1", f"--run={folder}/corpus"]
    subprocess.run([*COMMAND, *pregenerate, *options], check=True, stdout=subprocess.DEVNULL)
    rows = json.loads((folder / "corpus" / "shards" / "manifest.json").read_text(encoding="utf-8"))["rows"]
    epochs = steps / (rows // 16)
    return [
        f"--teacher.path={folder}/teacher",
        f"--shards={folder}/corpus/shards",
        f"--stage.epochs={epochs}",
    ]


def summarise(samples: dict[str, list[float]]) -> dict[str, float]:
    """Medians in seconds, and what each place takes beyond the ranks alone."""
    figures = {f"{name}_s": round(median(seconds), 2) for name, seconds in samples.items()}
    alone = median(samples["alone"])
    places = samples.keys() - {"alone"}
    over = {f"{name}_overhead_s": round(median(samples[name]) - alone, 2) for name in sorted(places)}
    return {**figures, **over}


def show(figures: dict[str, float], rounds: int) -> None:
    """Print the figures as a table, a row for each side."""
    names = [name.removesuffix("_s") for name in figures if not name.endswith("_overhead_s")]
    rows = [
        (name, f"{figures[f'{name}_s']:.1f}", f"{figures.get(f'{name}_overhead_s', 0.0):+.1f}")
        for name in names
    ]
    note = f"Medians of {rounds} rounds, sides in turn; two processes each."
    print_table(
        "From the command to the first step, s", ("", "seconds", "beyond the ranks alone"), rows, note
    )


if __name__ == "__main__":
    sys.exit(main())
