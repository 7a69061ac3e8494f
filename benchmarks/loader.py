"""Benchmark `loader`: rows from the page cache to batches of int64 tensors, ours against other loaders.

    python -m benchmarks.loader [--json FILE] [--rows N] [--length 128] [--batch 32] [--rounds N]

Every loader writes the same rows of random ids, all of full length, into a folder of its own, and gives
them back epoch by epoch in shuffled order, as tensors (batch, length) of int64, in this one process.
A first epoch of each, which does not count, is checked row by row; the others are timed whole, in turns,
with all that an epoch needs anew: its permutation, its iterators, its open files.

What is shuffled, and how:

- ours: all blocks of 256 rows, and the rows within windows of 32,768. `ours` gives the ids alone, as the
  others do; `ours_training` the batch that training gets, three tensors (ids, mask, segments).
- webdataset, a sample a member: the order of 8 shards, and a buffer of 1,000 rows.
- mosaicml_streaming (MDS, a sample a row): all rows, by a permutation.
- litdata, a sample a row: its default, all blocks of 256 rows in a chunk and the rows within each.
- datasets (Arrow): a buffer of 10,000 rows, of which half is given out whenever it is full. `datasets`
  gives its own tensors. `datasets_by_hand` is thousands of its Arrow rows at once, made a tensor and cut
  into batches by code of this benchmark: no loader, so not in `vs_best_other`, but what one could do.

mosaicml_streaming and litdata are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import print_table, take_turns, write_record
from data_pipeline.packing import Row
from data_pipeline.settings import PregenerateConfig
from data_pipeline.shards import VERSION, Manifest, file_sha256, ids_dtype, write_manifest, write_shard
from data_pipeline.stream import CorpusReader
from distill.sources import CorpusSource

Epochs = Callable[[int], Iterable[Tensor]]  # the batches of an epoch, by its number

VOCABULARY = 30522
SEED = 0
LARGEST = 2**16 - 1  # a block of shards holds its lengths in two bytes
SHARDS = 8  # of the loader whose shuffling begins with the order of shards
PACKAGES = ("webdataset", "mosaicml-streaming", "litdata", "datasets", "pyarrow")
BY_HAND = "datasets_by_hand"
QUIET = {"LITDATA_DISABLE_VERSION_CHECK": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
NOTE = (
    "Medians of {rounds} epochs each, in turns, one process, files in the page cache; {rows:,} rows of "
    "{length} tokens, batches of {batch}.\n"
    "A batch is the ids as one int64 tensor; `ours_training` makes mask and segments too.\n"
    "Ours reads ahead by its defaults; what it reads ahead is waited for within the epoch. Bytes are of "
    "the files; a row's ids alone are {ids_bytes}.\n"
    "Each loader in the fastest form found that shuffles rows; the head of benchmarks/loader.py says how "
    "each does."
)


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        rows: Rows of an epoch; a multiple of the batch.
        length: Tokens of a row; none is padding.
        batch: Rows of a batch.
        rounds: Epochs of each loader that count; one before them is checked.
    """

    rows: int = 131_072
    length: int = 128
    batch: int = 32
    rounds: int = 5


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = vars(_parser().parse_args(arguments))
    path = options.pop("json")
    settings = Settings(**options)
    try:
        check(settings)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for name, value in QUIET.items():  # before they are imported
        os.environ.setdefault(name, value)
    sides, left_out = installed(SIDES)
    samples = measure(sides, settings)
    figures = summarise(samples, settings.rows)
    show(figures, settings, left_out)
    if path:
        write_record(Path(path), "loader", arguments, figures, samples, PACKAGES)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.split("\n")[0])
    parser.add_argument("--json", metavar="FILE", help="write the record here")
    parser.add_argument("--rows", type=int, default=Settings.rows, help="rows of an epoch")
    parser.add_argument("--length", type=int, default=Settings.length, help="tokens of a row")
    parser.add_argument("--batch", type=int, default=Settings.batch, help="rows of a batch")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="epochs of each loader")
    return parser


def check(settings: Settings) -> None:
    """Refuse what can't be measured. Raises ValueError."""
    for name, value in vars(settings).items():
        if value < 1:
            raise ValueError(f"--{name}: {value}; give 1 or more")
    if settings.length > LARGEST:
        raise ValueError(f"--length: {settings.length}; give at most {LARGEST}")
    if settings.rows % settings.batch:
        raise ValueError(
            f"--rows: {settings.rows} is no multiple of --batch {settings.batch}, so an epoch would end "
            "with a smaller batch; give another"
        )


# ------------------------------------------------------------------------------------- measuring
def measure(sides: Mapping[str, Side], settings: Settings) -> dict[str, list[float]]:
    """Let every loader write the rows, check one epoch of each and time the others in turns."""
    rows = random_rows(settings)
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        turns: dict[str, Callable[[], float]] = {}
        for name, side in sides.items():
            folder = Path(scratch) / name
            folder.mkdir()
            side.write(folder, rows)
            samples[f"{name}_bytes"] = [float(size(folder))]
            epochs = side.read(folder, settings.batch)
            check_epoch(name, epochs(0), rows, settings.batch)
            turns[name] = timed(epochs, settings.rows)
        seconds = take_turns(turns, settings.rounds)
    return {**{f"{name}_seconds": values for name, values in seconds.items()}, **samples}


def random_rows(settings: Settings) -> np.ndarray:
    """The rows that every loader gets, of a fixed seed: (rows, length) of uint16."""
    shape = (settings.rows, settings.length)
    return np.random.default_rng(SEED).integers(VOCABULARY, size=shape, dtype=np.uint16)


def check_epoch(name: str, batches: Iterable[Tensor], rows: np.ndarray, batch: int) -> None:
    """Assert that an epoch gives every row once, not as stored, in whole batches of int64."""
    parts = []
    for ids in batches:
        assert (ids.dtype, *ids.shape) == (torch.int64, batch, rows.shape[1]), (name, ids.dtype, ids.shape)
        parts.append(ids.numpy().astype(rows.dtype))
    served = np.concatenate(parts)
    assert np.array_equal(_sorted(served), _sorted(rows)), f"{name}: these are other rows"
    assert not np.array_equal(served, rows), f"{name}: these are not shuffled"


def _sorted(rows: np.ndarray) -> np.ndarray:
    """The rows in an order that depends on the rows alone."""
    return np.sort(np.ascontiguousarray(rows).view(f"V{rows.itemsize * rows.shape[1]}").ravel())


def timed(epochs: Epochs, rows: int) -> Callable[[], float]:
    """A function that goes through the next epoch, from number 1 on, and returns its seconds."""
    numbers = count(1)

    def turn() -> float:
        begin = time.perf_counter()
        seen = sum(len(ids) for ids in epochs(next(numbers)))
        seconds = time.perf_counter() - begin
        assert seen == rows, (seen, rows)
        return seconds

    return turn


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------ ours
def write_ours(folder: Path, rows: np.ndarray) -> None:
    """Shards as `distillery pregenerate` makes them, of blocks of its default size."""
    number, length = rows.shape
    step = PregenerateConfig.rows_per_block
    listed = ([Row(ids, length) for ids in rows[i : i + step].tolist()] for i in range(0, number, step))
    shard = folder / "shard-000000.tar"
    blocks = write_shard(shard, listed, ids_dtype(VOCABULARY))
    manifest = Manifest(
        version=VERSION,
        vocabulary="random ids",
        vocabulary_size=VOCABULARY,
        pad=0,
        max_length=length,
        packing={},
        seed=SEED,
        variants=1,
        rows=number,
        tokens=rows.size,
        documents=1,
        checksums={shard.name: file_sha256(shard)},
        blocks=blocks,
    )
    write_manifest(folder, manifest)


def ours(folder: Path, batch: int) -> Epochs:
    """Batches of ids alone, which is what the other loaders make."""
    reader = CorpusReader(str(folder), batch, SEED)
    return _epochs(reader, lambda step: torch.from_numpy(reader.step(step).ids))


def ours_training(folder: Path, batch: int) -> Epochs:
    """Batches as training gets them: ids, mask and segments."""
    reader = CorpusReader(str(folder), batch, SEED)
    source = CorpusSource(reader, batch)
    return _epochs(reader, lambda step: source.micro_batches(step)[0].ids)


def _epochs(reader: CorpusReader, batch_of: Callable[[int], Tensor]) -> Epochs:
    """Epochs of a reader; what it reads ahead is waited for, so that it falls into no other's turn."""
    steps = reader.steps_per_epoch

    def epoch(number: int) -> Iterator[Tensor]:
        yield from map(batch_of, range(number * steps, (number + 1) * steps))
        for corpus in reader.corpora:
            if corpus.ahead:
                corpus.ahead[1].result()

    return epoch


# ---------------------------------------------------------------------------- the other loaders
def _tensor(rows: Any) -> Tensor:
    """A batch; of a list of arrays, np.array makes int64 in one pass, thrice as fast as np.stack."""
    return torch.from_numpy(np.array(rows, dtype=np.int64))


def _batched(rows: Iterable[Any], batch: int) -> Iterator[list[Any]]:
    """The rows in lists of a batch's size."""
    # A dataset may be its own iterator and begin anew whenever islice asks for one; a generator doesn't.
    once = (row for row in rows)
    while part := list(islice(once, batch)):
        yield part


def write_webdataset(folder: Path, rows: np.ndarray) -> None:
    """A .npy member a row; with a whole mtime, for a float, its default, costs 1,024 bytes more each."""
    import webdataset

    most = -(-len(rows) // SHARDS)
    with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=most, verbose=0, mtime=0) as writer:
        for number, ids in enumerate(rows):
            writer.write({"__key__": f"{number:08d}", "npy": ids})


def webdataset(folder: Path, batch: int) -> Epochs:
    """Its usual pipeline: shards shuffled, a shuffle buffer, decoding, batching.

    What decodes is `npy_row`: .decode() calls np.load, with which the whole takes twice as long and more.
    """
    import webdataset

    shards = sorted(map(str, folder.glob("*.tar")))

    def epoch(number: int) -> Iterable[Tensor]:
        return (
            webdataset.WebDataset(shards, shardshuffle=len(shards), seed=number)
            .shuffle(1000, initial=1000, seed=number)
            .map(lambda sample: npy_row(sample["npy"]))
            .batched(batch, collation_fn=_tensor)
        )

    return epoch


def npy_row(data: bytes) -> np.ndarray:
    """The uint16 row in an .npy file of format 1: the header is skipped, not parsed."""
    return np.frombuffer(data, np.uint16, offset=10 + int.from_bytes(data[8:10], "little"))


def write_mosaicml_streaming(folder: Path, rows: np.ndarray) -> None:
    """MDS with a row's bytes in a column: as `ndarray:uint16:128` the whole takes half as long again."""
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"ids": "bytes"}) as writer:
        for ids in rows:
            writer.write({"ids": ids.tobytes()})


def mosaicml_streaming(folder: Path, batch: int) -> Epochs:
    """Its dataset for local files, by index in a permutation.

    StreamingDataset's own iteration, where two threads walk ahead of the rows, is less than half as
    fast, its DataLoader no faster.
    """
    from streaming import LocalDataset

    dataset = LocalDataset(str(folder))

    def epoch(number: int) -> Iterator[Tensor]:
        order = np.random.default_rng([SEED, number]).permutation(len(dataset)).tolist()
        for samples in _batched(map(dataset.__getitem__, order), batch):
            flat = np.frombuffer(b"".join(sample["ids"] for sample in samples), np.uint16)
            yield _tensor(flat.reshape(len(samples), -1))

    return epoch


def write_litdata(folder: Path, rows: np.ndarray) -> None:
    """`optimize` with its usual chunks of 64 MB, in a process of its own."""
    from litdata import optimize

    stored = folder.with_suffix(".npy")
    np.save(stored, rows)
    for name in ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER"):
        os.environ[name] = f"{folder}.cache"  # else it leaves folders in /tmp
    with redirect_stdout(io.StringIO()):
        optimize(
            _stored_rows,
            [str(stored)],
            output_dir=str(folder),
            chunk_bytes="64MB",
            num_workers=1,
            start_method="spawn",
            verbose=False,
        )


def _stored_rows(path: str) -> Iterator[np.ndarray]:
    yield from np.load(path)


def litdata(folder: Path, batch: int) -> Epochs:
    """Its StreamingDataset by its defaults, iterated; each iteration is another epoch to it.

    TokensLoader is slower by a seventh, its DataLoader by nearly half.
    """
    from litdata import StreamingDataset

    dataset = StreamingDataset(str(folder), shuffle=True, seed=SEED)
    return lambda epoch: map(_tensor, _batched(dataset, batch))


def write_datasets(folder: Path, rows: np.ndarray) -> None:
    """Arrow with lists of a fixed size, which need no offsets."""
    import pyarrow
    from datasets import Dataset

    ids = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1])
    Dataset(pyarrow.table({"ids": ids})).save_to_disk(folder)


def datasets(folder: Path, batch: int) -> Epochs:
    """Its own tensors, with_format("torch"), from its iterable form.

    Half as fast or less: indices in a permutation; shuffle() alone; flatten_indices anew for each epoch.
    """
    from datasets import load_from_disk

    dataset = load_from_disk(folder).with_format("torch").to_iterable_dataset()

    def epoch(number: int) -> Iterator[Tensor]:
        for rows in dataset.shuffle(seed=number, buffer_size=10_000).iter(batch):
            yield rows["ids"].long()

    return epoch


def datasets_by_hand(folder: Path, batch: int) -> Epochs:
    """Its iterable form, formatted as Arrow, several batches at a time, which are then cut apart."""
    from datasets import load_from_disk

    dataset = load_from_disk(folder).to_iterable_dataset().with_format("arrow")
    several = batch * max(1, 4096 // batch)

    def epoch(number: int) -> Iterator[Tensor]:
        for table in dataset.shuffle(seed=number, buffer_size=10_000).iter(several):
            flat = table["ids"].combine_chunks().flatten().to_numpy()
            yield from _tensor(flat.reshape(table.num_rows, -1)).split(batch)

    return epoch


# ------------------------------------------------------------------------------------ the sides
class Side(NamedTuple):
    """A loader: what writes the rows, what reads them; its module and package where it may be absent."""

    write: Callable[[Path, np.ndarray], None]
    read: Callable[[Path, int], Epochs]
    module: str = ""
    package: str = ""


SIDES = {
    "ours": Side(write_ours, ours),
    "ours_training": Side(write_ours, ours_training),
    "webdataset": Side(write_webdataset, webdataset),
    "mosaicml_streaming": Side(
        write_mosaicml_streaming, mosaicml_streaming, "streaming", "mosaicml-streaming"
    ),
    "litdata": Side(write_litdata, litdata, "litdata", "litdata"),
    "datasets": Side(write_datasets, datasets),
    "datasets_by_hand": Side(write_datasets, datasets_by_hand),
}


def installed(sides: Mapping[str, Side]) -> tuple[dict[str, Side], list[str]]:
    """The loaders that can be imported, and a line for each other one."""
    found, left_out = {}, []
    for name, side in sides.items():
        try:
            if side.module:
                importlib.import_module(side.module)
        except Exception as error:  # whatever another's package raises while it is imported
            left_out.append(f"Left out: {name} ({error}); to have it, pip install {side.package}")
        else:
            found[name] = side
    return found, left_out


# ----------------------------------------------------------------------------------- what it says
def summarise(samples: Mapping[str, Sequence[float]], rows: int) -> dict[str, float]:
    """The figures: ratios of ours to the others, and of every loader its speed and bytes."""
    names = [name.removesuffix("_seconds") for name in samples if name.endswith("_seconds")]
    speed = {name: rows / median(samples[f"{name}_seconds"]) for name in names}
    size = {name: samples[f"{name}_bytes"][0] / rows for name in names}
    best = max(value for name, value in speed.items() if not name.startswith("ours") and name != BY_HAND)
    return {
        "vs_webdataset_per_sample": round(speed["ours"] / speed["webdataset"], 3),
        "vs_best_other": round(speed["ours"] / best, 3),
        "vs_datasets_by_hand": round(speed["ours"] / speed[BY_HAND], 3),
        "bytes_per_sequence": round(size["ours"], 1),
        **{f"{name}_sequences_per_s": round(value, 1) for name, value in speed.items()},
        **{f"{name}_bytes_per_sequence": round(value, 1) for name, value in size.items()},
    }


def show(figures: Mapping[str, float], settings: Settings, left_out: Iterable[str] = ()) -> None:
    """Print the figures as a table, a row for each loader."""
    columns = ("sequences_per_s", "bytes_per_sequence")
    names = [name for name in SIDES if f"{name}_{columns[0]}" in figures]
    rows = [(name, *(f"{figures[f'{name}_{column}']:,.0f}" for column in columns)) for name in names]
    note = NOTE.format(**vars(settings), ids_bytes=2 * settings.length)
    print_table("Rows to batches", ("", "sequences/s", "bytes/sequence"), rows, note)
    print(
        f"Ours: {figures['vs_webdataset_per_sample']:.1f} times webdataset's sequences/s, "
        f"{figures['vs_best_other']:.2f} times the best other's, "
        f"{figures['vs_datasets_by_hand']:.2f} times that of Arrow cut by hand"
    )
    for line in left_out:
        print(line)


if __name__ == "__main__":
    sys.exit(main())
