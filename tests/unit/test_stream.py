"""The reader serves each row once, alike on any ranks, from any step on, whatever it reads ahead."""

import shutil
import threading
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import order
from data_pipeline.packing import Row
from data_pipeline.settings import StreamConfig
from data_pipeline.shards import Rows
from data_pipeline.store import ShardFolder
from data_pipeline.stream import CorpusReader, Damage, apportion
from tests.helpers import change_manifest, write_shards

SIZES = [5, 9, 1, 14, 8, 3, 12]  # rows of each block: 52


def number_shards(folder: Path, sizes: list[int], first: int = 0, length: int = 1) -> str:
    """Shards in which every row begins with its own number."""
    blocks = []
    for size in sizes:
        blocks.append([Row([first + n, *[0] * ((first + n) * 7 % length)], 1) for n in range(size)])
        first += size
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(folder, blocks, size=10_000)
    return str(folder)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> str:
    return number_shards(tmp_path_factory.mktemp("numbered"), SIZES)


@pytest.fixture(params=[(3, 1), (32_768, 512)], ids=["small windows", "usual windows"], autouse=True)
def _windows(request):
    with patch.multiple(order, WINDOW_ROWS=request.param[0], LEAST=request.param[1]):
        yield


def rows(reader: CorpusReader, step: int) -> list[int]:
    return reader.step(step).ids[:, 0].tolist()


def epoch(reader: CorpusReader, number: int = 0) -> list[int]:
    steps = reader.steps_per_epoch
    return [row for step in range(number * steps, (number + 1) * steps) for row in rows(reader, step)]


def ranks_of(shards, batch_size: int, seed: int, world: int, workers: int = 1) -> list[CorpusReader]:
    config = StreamConfig(workers=workers)
    return [CorpusReader(shards, batch_size, seed, rank, world, config=config) for rank in range(world)]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_reader_serves_every_row_once(numbered, workers):
    reader = CorpusReader(numbered, 4, seed=0, config=StreamConfig(workers))
    for number in range(3):
        assert sorted(epoch(reader, number)) == list(range(52))


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    share=st.integers(1, 4),
    before=st.integers(1, 16),
    after=st.integers(1, 16),
    workers=st.integers(0, 4),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_any_shards_ranks_workers_and_stops(
    tmp_path_factory, sizes, share, before, after, workers, seed, data
):
    """Stopped anywhere and resumed on other ranks: the epoch's rows, each once, in the same steps."""
    batch_size = int(np.lcm(before, after)) * share
    if sum(sizes) < batch_size:
        sizes = [*sizes, batch_size + 5]
    shards = number_shards(tmp_path_factory.mktemp("shards"), sizes, length=5)
    unbroken = CorpusReader(shards, batch_size, seed, config=StreamConfig(0))
    steps = unbroken.steps_per_epoch
    stop = data.draw(st.integers(0, steps))
    seen: list[list[int]] = []
    for world, part in ((before, range(stop)), (after, range(stop, steps))):
        readers = ranks_of(shards, batch_size, seed, world, workers)
        for step in part:
            shares = [rows(reader, step) for reader in readers]
            assert {len(one) for one in shares} == {batch_size // world}
            seen.append(sorted(row for one in shares for row in one))
        for reader in readers:
            reader.close()
    assert seen == [sorted(rows(unbroken, step)) for step in range(steps)]
    counts = Counter(row for step in seen for row in step)
    assert set(counts.values()) <= {1}
    assert (
        sum(counts.values())
        == steps * batch_size
        > sum(sizes) - batch_size - unbroken.corpora[0].order.streams
    )


def test_a_reader_at_work_serves_what_a_new_one_does(numbered):
    """What it keeps of an epoch does not reach into the next, forwards or back."""
    at_work = CorpusReader(numbered, 4, seed=0)
    last = 3 * at_work.steps_per_epoch
    for step in [*range(last), 5, last, 0]:
        assert rows(at_work, step) == rows(CorpusReader(numbered, 4, seed=0), step)


def test_rows_of_a_step_are_of_like_lengths_on_every_rank(tmp_path):
    shards = number_shards(tmp_path, [40] * 10, length=15)
    with patch.multiple(order, WINDOW_ROWS=400, LEAST=1):
        sorted_ranks = ranks_of(shards, 8, 0, 2)
        plain = CorpusReader(shards, 8, 0, by_length=False)
        spreads = {"by length": 0, "plain": 0}
        for step in range(50):
            lengths = np.concatenate([reader.step(step).lengths for reader in sorted_ranks])
            spreads["by length"] += int(lengths.max() - lengths.min())
            spreads["plain"] += int(np.ptp(plain.step(step).lengths))
    assert spreads["by length"] < spreads["plain"] / 3
    assert sorted(epoch(plain)) == sorted(row for reader in sorted_ranks for row in epoch(reader))


def test_a_step_keeps_ids_lengths_and_boundaries_together(tiny_shards):
    reader = CorpusReader(tiny_shards, 16, seed=0)
    step = reader.step(1)
    assert step.ids.shape == (16, 32)
    assert ((step.ids != reader.pad).sum(1) == step.lengths).all()
    folder = ShardFolder(tiny_shards)
    known = set()
    for number in range(len(folder.manifest.blocks)):
        block = folder.block(number)
        known |= {(tuple(i), int(b)) for i, b in zip(block.ids, block.boundaries, strict=True)}
    assert all((tuple(i), int(b)) in known for i, b in zip(step.ids, step.boundaries, strict=True))


def test_each_block_is_read_once_for_a_window(numbered, monkeypatch):
    read: list[int] = []
    block = ShardFolder.block

    def noted(folder: ShardFolder, number: int) -> Rows:
        if threading.current_thread() is threading.main_thread():  # not what an earlier test reads ahead
            read.append(number)
        return block(folder, number)

    monkeypatch.setattr(ShardFolder, "block", noted)
    with patch.multiple(order, WINDOW_ROWS=100, LEAST=100):
        epoch(CorpusReader(numbered, 1, seed=0, config=StreamConfig(0)))
    assert sorted(read) == list(range(7))


def test_a_slow_store_delays_no_step_while_the_rows_read_ahead_last(tmp_path, monkeypatch):
    """The second window is fetched while the first is served: no step of the first waits for it."""
    answers = threading.Event()
    answers.set()
    block = ShardFolder.block
    monkeypatch.setattr(ShardFolder, "block", lambda self, n: answers.wait(60) and block(self, n))
    shards = number_shards(tmp_path, [40] * 4)
    with patch.multiple(order, WINDOW_ROWS=40, LEAST=10):
        reader, expected = CorpusReader(shards, 4, seed=0), CorpusReader(shards, 4, seed=0)
        first = [rows(expected, step) for step in range(40)]
        served = [rows(reader, 0)]
        answers.clear()  # from here on the store answers nothing
        served += [rows(reader, step) for step in range(1, 10)]
        answers.set()
        served += [rows(reader, step) for step in range(10, 40)]
    assert served == first


@pytest.mark.parametrize(("batch_size", "world"), [(20, 8), (16, 3), (8, 16), (3072, 3)])
def test_a_batch_that_can_not_be_shared_out_is_refused(numbered, batch_size, world):
    with pytest.raises(
        ValueError, match=rf"batch_size: {batch_size} rows .* multiple of {world} up to 1024"
    ):
        CorpusReader(numbered, batch_size, 0, 0, world)


def test_a_corpus_smaller_than_a_batch_is_refused(numbered):
    with pytest.raises(ValueError, match=r"a step takes 64 rows of .*, which has 52"):
        CorpusReader(numbered, 64, seed=0)


# --- several corpora ---------------------------------------------------------------------------


@given(st.lists(st.floats(0.05, 10), min_size=1, max_size=6), st.integers(64, 1024))
def test_shares_are_whole_and_nearest_to_the_weights(weights, streams):
    if min(weights) / sum(weights) * streams < 1:
        return
    shares = apportion(weights, streams)
    assert sum(shares) == streams
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - weight / sum(weights) * streams) < 1


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -2.0], [1.0, float("nan")], [100.0, 0.1]])
def test_a_weight_that_can_not_be_met_is_refused(weights):
    with pytest.raises(ValueError, match=r"weight"):
        apportion(weights, 16)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_every_step_holds_each_corpus_in_proportion(tmp_path, world):
    mixture = {
        number_shards(tmp_path / "a", [30] * 4): 3.0,
        number_shards(tmp_path / "b", [25] * 2, first=1000): 1.0,
    }
    readers = ranks_of(mixture, 8, 0, world)
    alone = CorpusReader(mixture, 8, 0)
    assert alone.steps_per_epoch == 170 // 8
    seen: Counter[int] = Counter()
    for step in range(50):
        taken = [row for reader in readers for row in rows(reader, step)]
        assert sorted(taken) == sorted(rows(alone, step))
        assert sum(row >= 1000 for row in taken) == 2
        seen.update(taken)
    # 50 steps are 2.5 epochs of a's 120 rows and 4 of b's 50 (48 of them fill its steps)
    assert {seen[row] for row in range(120)} == {2, 3}
    assert max(seen[row] for row in range(1000, 1050)) <= 5


def test_corpora_of_one_size_have_orders_of_their_own(tmp_path):
    a, b = (number_shards(tmp_path / name, [30] * 4, first) for name, first in (("a", 0), ("b", 1000)))
    reader = CorpusReader({a: 1.0, b: 1.0}, 8, 0)
    taken = np.array([rows(reader, step) for step in range(reader.steps_per_epoch)])
    assert not np.array_equal(taken[:, :4], taken[:, 4:] - 1000)


def test_corpora_of_other_lengths_are_padded_alike(tmp_path):
    a = number_shards(tmp_path / "a", [8])
    b = number_shards(tmp_path / "b", [8], first=1000)
    change_manifest(Path(a), pad=7)
    change_manifest(Path(b), pad=7, max_length=20)
    step = CorpusReader({a: 1.0, b: 1.0}, 4, 0).step(0)
    assert step.ids.shape == (4, 20)
    assert (step.ids[:, 1:] == 7).all()  # RoBERTa counts positions by it
    ranks = [CorpusReader({a: 1.0, b: 1.0}, 4, 0, rank=rank, world=4) for rank in range(4)]
    assert [reader.step(0).ids.shape for reader in ranks] == [(1, 20)] * 4


def test_corpora_of_other_vocabularies_are_refused(tmp_path):
    a, b = (number_shards(tmp_path / name, [8]) for name in "ab")
    change_manifest(Path(b), vocabulary="f" * 16)
    with pytest.raises(ValueError, match="another vocabulary"):
        CorpusReader({a: 1.0, b: 1.0}, 4, 0)


# --- damage ------------------------------------------------------------------------------------


@pytest.fixture
def damaged(numbered, tmp_path) -> str:
    """Shards whose second file has a flipped bit in its first block, and whose last file is gone."""
    folder = Path(shutil.copytree(numbered, tmp_path / "damaged"))
    manifest = ShardFolder(str(folder)).manifest
    path = folder / manifest.blocks[2].shard
    content = bytearray(path.read_bytes())
    content[manifest.blocks[2].offset + manifest.blocks[2].size - 1] ^= 4
    path.write_bytes(content)
    (folder / manifest.blocks[6].shard).unlink()
    return str(folder)


def test_a_damaged_shard_ends_the_run_by_default(damaged):
    with pytest.raises(ValueError, match=r"shard-\d+\.tar (is damaged at byte \d+|is missing)"):
        epoch(CorpusReader(damaged, 4, 0))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_skip_takes_rows_of_whole_blocks_instead_the_same_on_any_ranks(damaged, world):
    told: list[Damage] = []
    config = StreamConfig(damaged="skip")
    readers = [
        CorpusReader(damaged, 4, 0, rank, world, config=config, on_damage=told.append)
        for rank in range(world)
    ]
    alone = CorpusReader(damaged, 4, 0, config=config)
    bad = {14, *range(40, 52)}  # the rows of block 2 and of block 6
    for number in range(6):  # in some a damaged block is the last of the order
        taken = [row for reader in readers for row in epoch(reader, number)]
        assert sorted(taken) == sorted(epoch(alone, number))
        assert len(taken) == 52
        assert not bad & set(taken)
        assert set(taken) == set(range(52)) - bad
    assert {damage.rows for damage in told} == {1, 12}
    assert len({damage.message for damage in told}) == 2
    assert any("is missing" in damage.message for damage in told)
    assert any("is damaged at byte" in damage.message for damage in told)


def test_nothing_whole_is_an_error_with_skip_too(damaged):
    for path in Path(damaged).glob("*.tar"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no block of .* is whole"):
        CorpusReader(damaged, 4, 0, config=StreamConfig(damaged="skip")).step(0)
