"""The loader benchmark: every loader gives each row once an epoch; figures are ratios of medians."""

import io
import json
import os
from unittest import mock

import numpy as np
import pytest
import torch

from benchmarks import loader, record
from benchmarks.loader import SIDES, Settings, Side

SMALL = Settings(rows=512, length=8, batch=4, rounds=2)
SAMPLES = {
    "ours_seconds": [2.0, 1.0, 50.0],
    "ours_training_seconds": [1.0, 1.0, 1.0],
    "webdataset_seconds": [40.0, 30.0, 40.0],
    "datasets_seconds": [4.0, 5.0, 3.0],
    "datasets_by_hand_seconds": [1.0, 2.0, 3.0],
    "ours_bytes": [1000.0],
    "ours_training_bytes": [1000.0],
    "webdataset_bytes": [4000.0],
    "datasets_bytes": [500.0],
    "datasets_by_hand_bytes": [500.0],
}


@pytest.fixture(autouse=True)
def _environment():
    """What a loader is told through the environment is put back after each test."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def rows() -> np.ndarray:
    return loader.random_rows(SMALL)


def batches(rows: np.ndarray, batch: int = SMALL.batch) -> list[torch.Tensor]:
    return list(torch.from_numpy(rows.astype(np.int64)).split(batch))


def in_memory(rows: np.ndarray) -> Side:
    """A loader that keeps the rows and turns them about."""
    return Side(lambda folder, rows: None, lambda folder, batch: lambda epoch: batches(rows[::-1], batch))


# ---------------------------------------------------------------------------------- the settings
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--rows", "100"], "--batch 32"),
        (["--rounds", "0"], "--rounds"),
        (["--batch", "-32"], "--batch"),
        (["--length", "65536"], "--length"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_exit_2(arguments, named, capsys):
    assert loader.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert named in printed.err


def test_the_rows_are_the_same_each_time(rows):
    assert (rows.shape, rows.dtype) == ((512, 8), np.uint16)
    assert np.array_equal(rows, loader.random_rows(SMALL))
    assert rows.max() < loader.VOCABULARY


# ---------------------------------------------------------------------------------- what is checked
def test_an_epoch_in_another_order_is_whole(rows):
    loader.check_epoch("any", batches(rows[::-1]), rows, SMALL.batch)


@pytest.mark.parametrize(
    ("served", "why"),
    [
        (lambda rows: batches(rows), "not shuffled"),
        (lambda rows: batches(rows[::-1][4:]), "other rows"),
        (lambda rows: batches(np.concatenate([rows[4:], rows[4:8]])), "other rows"),
        (lambda rows: batches(np.sort(rows, axis=1)), "other rows"),
        (lambda rows: batches(rows[::-1], batch=8), "any"),
        (lambda rows: [ids.int() for ids in batches(rows[::-1])], "int32"),
    ],
)
def test_an_epoch_that_is_not_the_rows_in_whole_batches_is_refused(served, why, rows):
    with pytest.raises(AssertionError, match=why):
        loader.check_epoch("any", served(rows), rows, SMALL.batch)


def test_a_turn_is_the_next_epoch():
    seen = []

    def epochs(number):
        seen.append(number)
        yield torch.zeros(3, 2)
        yield torch.zeros(3, 2)

    turn = loader.timed(epochs, rows=6)
    assert all(turn() > 0 for _ in range(3))
    assert seen == [1, 2, 3]
    with pytest.raises(AssertionError):
        loader.timed(epochs, rows=7)()


def test_the_bytes_are_those_of_all_files(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "inside" / "b").write_bytes(b"345")
    assert loader.size(tmp_path) == 5


@pytest.mark.parametrize("length", [1, 8, 128])
def test_a_row_is_read_past_the_header_of_its_npy_file(length):
    row = np.arange(length, dtype=np.uint16)
    file = io.BytesIO()
    np.save(file, row)
    assert np.array_equal(loader.npy_row(file.getvalue()), row)


def test_a_dataset_that_begins_anew_for_each_iterator_is_gone_through_once():
    class Dataset:
        def __iter__(self):
            self.numbers = iter(range(5))
            return self

        def __next__(self):
            return next(self.numbers)

    assert list(loader._batched(Dataset(), 2)) == [[0, 1], [2, 3], [4]]


# ---------------------------------------------------------------------------------- the loaders
@pytest.mark.parametrize("name", SIDES)
def test_a_loader_gives_every_row_in_an_order_of_the_epoch(name, rows, tmp_path):
    sides, left_out = loader.installed({name: SIDES[name]})
    if left_out:
        pytest.skip(left_out[0])
    folder = tmp_path / name
    folder.mkdir()
    sides[name].write(folder, rows)
    assert loader.size(folder) >= rows.nbytes
    epochs = sides[name].read(folder, SMALL.batch)
    first, second = (list(epochs(number)) for number in range(2))
    for served in (first, second):
        loader.check_epoch(name, served, rows, SMALL.batch)
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_a_loader_that_is_not_installed_is_left_out_with_a_line_that_says_how_to_install_it():
    absent = Side(SIDES["ours"].write, SIDES["ours"].read, "no_such_module", "no-such-package")
    sides, lines = loader.installed({"ours": SIDES["ours"], "absent": absent})
    assert list(sides) == ["ours"]
    (line,) = lines
    assert "absent" in line
    assert "pip install no-such-package" in line


# ------------------------------------------------------------------------------------ the figures
def test_loaders_are_measured_in_turns(rows):
    samples = loader.measure({"a": in_memory(rows), "b": in_memory(rows)}, SMALL)
    assert {name: len(values) for name, values in samples.items()} == {
        "a_seconds": 2,
        "b_seconds": 2,
        "a_bytes": 1,
        "b_bytes": 1,
    }


def test_figures_are_ratios_of_medians():
    figures = loader.summarise(SAMPLES, rows=100)
    assert figures == {
        "vs_webdataset_per_sample": 20.0,
        "vs_best_other": 2.0,
        "vs_datasets_by_hand": 1.0,
        "bytes_per_sequence": 10.0,
        "ours_sequences_per_s": 50.0,
        "ours_training_sequences_per_s": 100.0,
        "webdataset_sequences_per_s": 2.5,
        "datasets_sequences_per_s": 25.0,
        "datasets_by_hand_sequences_per_s": 50.0,
        "ours_bytes_per_sequence": 10.0,
        "ours_training_bytes_per_sequence": 10.0,
        "webdataset_bytes_per_sequence": 40.0,
        "datasets_bytes_per_sequence": 5.0,
        "datasets_by_hand_bytes_per_sequence": 5.0,
    }


def test_the_table_has_a_row_for_each_loader_and_names_those_left_out(capsys):
    loader.show(loader.summarise(SAMPLES, rows=100), SMALL, ["Left out: litdata"])
    printed = capsys.readouterr().out
    assert all(
        name in printed for name in ("ours", "ours_training", "webdataset", "datasets", "Left out: litdata")
    )
    assert "mosaicml_streaming" not in printed
    assert "2.00 times the best other's" in printed


def test_the_record_has_the_versions_of_what_was_measured(tmp_path):
    path = tmp_path / "loader.json"
    record.write_record(path, "loader", [], {}, {}, ["webdataset", "no-such-package"])
    versions = json.loads(path.read_text(encoding="utf-8"))["versions"]
    assert set(versions) == {"python", "torch", "deepspeed", "transformers", "numpy", "webdataset"}
