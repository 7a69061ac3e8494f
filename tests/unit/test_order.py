"""The order of a corpus is a pure function of (seed, epoch, step), whatever the number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import order
from data_pipeline.order import STREAMS, CorpusOrder, CorpusReader
from data_pipeline.packing import Row
from data_pipeline.shards import read_block
from tests.helpers import write_shards

WORLDS = (1, 2, 4, 8, 16)
few = settings(max_examples=15)  # each reads whole epochs


@st.composite
def corpora(draw):
    """Rows of some blocks, and a batch size of which the corpus holds a step at least."""
    batch_size = 16 * draw(st.integers(1, 3))
    blocks = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    if sum(blocks) < batch_size:
        blocks.append(batch_size)
    return blocks, batch_size


class Places(CorpusReader):
    """A reader whose rows say only where they lie: (block, row in block) as one number."""

    def __init__(self, blocks: list[int], batch_size: int, seed: int, rank: int = 0, world: int = 1):
        self.order = CorpusOrder(blocks, batch_size, seed)
        self.mine = range(rank, self.order.streams, world)
        self._windows = {}

    def _window(self, epoch, stream, number):
        blocks, rows = self.order.window(epoch, stream, number)
        places = blocks * 1000 + rows
        return order.Rows(places[:, None], np.ones_like(places), np.ones_like(places))


def places(reader: CorpusReader, number: int) -> list[int]:
    return reader.step(number).ids[:, 0].tolist()


def epoch(reader: CorpusReader, number: int = 0) -> list[int]:
    """All places that a reader serves in an epoch, in order."""
    steps = reader.steps_per_epoch
    return [place for step in range(number * steps, (number + 1) * steps) for place in places(reader, step)]


@pytest.fixture(params=[5, 2048], ids=["small windows", "usual windows"])
def _windows(request, monkeypatch):
    monkeypatch.setattr(order, "WINDOW_ROWS", request.param)


@pytest.mark.usefixtures("_windows")
class TestOrder:
    """Everything holds for windows smaller than a stream as well as for larger ones."""

    @few
    @given(corpora(), st.integers(0, 5), st.sampled_from(WORLDS))
    def test_the_ranks_together_take_what_one_rank_takes(self, corpus, seed, world):
        alone = Places(*corpus, seed)
        ranks = [Places(*corpus, seed, rank, world) for rank in range(world)]
        for step in range(min(alone.steps_per_epoch + 2, 6)):
            together = [place for reader in ranks for place in places(reader, step)]
            assert sorted(together) == sorted(places(alone, step))

    @few
    @given(corpora(), st.integers(0, 5), st.sampled_from(WORLDS))
    def test_every_rank_takes_as_many_rows(self, corpus, seed, world):
        for rank in range(world):
            reader = Places(*corpus, seed, rank, world)
            assert len(places(reader, 0)) == corpus[1] // world
            assert len(places(reader, reader.steps_per_epoch - 1)) == corpus[1] // world

    @few
    @given(corpora(), st.integers(0, 5), st.integers(0, 2))
    def test_no_row_comes_twice_in_an_epoch(self, corpus, seed, number):
        served = epoch(Places(*corpus, seed), number)
        assert len(set(served)) == len(served)

    @few
    @given(corpora(), st.integers(0, 5))
    def test_every_row_that_is_served_exists(self, corpus, seed):
        blocks, _ = corpus
        for place in epoch(Places(*corpus, seed)):
            assert place % 1000 < blocks[place // 1000]

    @few
    @given(corpora(), st.integers(0, 5))
    def test_fewer_rows_than_a_step_and_the_streams_rounding_are_left_over(self, corpus, seed):
        blocks, batch_size = corpus
        served = epoch(Places(*corpus, seed))
        assert sum(blocks) - len(served) < batch_size + STREAMS

    @few
    @given(corpora(), st.integers(0, 5), st.data())
    def test_a_reader_that_starts_at_any_step_serves_what_one_that_never_stopped_does(
        self, corpus, seed, data
    ):
        unbroken = Places(*corpus, seed)
        last = 2 * unbroken.steps_per_epoch
        start = data.draw(st.integers(0, last))
        expected = [places(unbroken, step) for step in range(last + 1)][start:]
        resumed = Places(*corpus, seed)
        assert [places(resumed, step) for step in range(start, last + 1)] == expected

    @few
    @given(corpora(), st.integers(0, 5), st.sampled_from(WORLDS), st.sampled_from(WORLDS), st.data())
    def test_a_run_that_resumes_on_other_ranks_loses_and_repeats_nothing(
        self, corpus, seed, before, after, data
    ):
        steps = Places(*corpus, seed).steps_per_epoch
        stop = data.draw(st.integers(0, steps))
        served: list[int] = []
        for world, part in ((before, range(stop)), (after, range(stop, steps))):
            readers = [Places(*corpus, seed, rank, world) for rank in range(world)]
            served += [place for step in part for reader in readers for place in places(reader, step)]
        assert sorted(served) == sorted(epoch(Places(*corpus, seed)))


@given(st.lists(st.integers(1, 99), min_size=1, max_size=20), st.integers(1, 200))
def test_steps_of_an_epoch(blocks, batch_size):
    """The naive count: every stream gives as many rows to each step, as often as it can."""
    streams = max(s for s in range(1, STREAMS + 1) if STREAMS % s == 0 and batch_size % s == 0)
    expected = (sum(blocks) // streams) // (batch_size // streams)
    assert CorpusOrder(blocks, batch_size, seed=0).steps_per_epoch == expected


def test_epochs_and_seeds_differ():
    blocks = [7] * 30
    first, second = (epoch(Places(blocks, 16, 0), number) for number in (0, 1))
    other = epoch(Places(blocks, 16, 1))
    assert first != second
    assert first != other


def test_rows_of_a_single_block_are_shuffled_anew_in_every_epoch():
    first, second = (epoch(Places([100], 1, 0), number) for number in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)


def test_what_one_epoch_leaves_over_comes_in_another():
    blocks = [3] * 9  # 27 rows, of which a step takes 16
    served = {place for number in range(20) for place in epoch(Places(blocks, 16, 0), number)}
    assert len(served) == 27


def test_rows_are_shuffled_within_a_stream():
    served = epoch(Places([1000], 1, 0))
    assert served != sorted(served)
    assert sorted(served) == list(range(1000))


def test_a_batch_size_that_is_no_multiple_of_the_streams_is_served_too():
    readers = [Places([50, 50], 20, 0, rank, 4) for rank in range(4)]
    assert [len(places(reader, 0)) for reader in readers] == [5] * 4


# --- with real shards ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> str:
    """Shards in which every row is its own number."""
    folder = tmp_path_factory.mktemp("numbered")
    sizes, number, blocks = [5, 9, 1, 14, 8, 3, 12], 0, []
    for size in sizes:
        blocks.append([Row([number + n], 1) for n in range(size)])
        number += size
    write_shards(folder, blocks, size=100)
    return str(folder)


def test_the_reader_serves_every_row_once(numbered):
    reader = CorpusReader(numbered, batch_size=1, seed=0)
    assert reader.steps_per_epoch == 52
    assert sorted(epoch(reader)) == list(range(52))


@pytest.mark.parametrize("world", WORLDS)
def test_readers_together_serve_the_same_rows(numbered, world):
    alone = CorpusReader(numbered, 16, seed=3)
    ranks = [CorpusReader(numbered, 16, 3, rank, world) for rank in range(world)]
    for step in range(2 * alone.steps_per_epoch):
        together = [place for reader in ranks for place in places(reader, step)]
        assert sorted(together) == sorted(places(alone, step))


def test_a_reader_at_work_serves_what_a_new_one_does(numbered):
    """What it keeps of an epoch does not reach into the next."""
    at_work = CorpusReader(numbered, 4, seed=0)
    for step in range(3 * at_work.steps_per_epoch):
        assert places(at_work, step) == places(CorpusReader(numbered, 4, seed=0), step)


def test_the_reader_gives_the_rows_that_the_order_names(tiny_shards):
    reader = CorpusReader(tiny_shards, 16, seed=0)
    step = reader.step(1)
    assert step.ids.shape == (16, 32)
    assert ((step.ids != reader.manifest.pad).sum(1) == step.lengths).all()


def test_each_block_is_read_once_for_a_window(numbered, monkeypatch):
    read: list[int] = []

    def counted(folder, block, manifest):
        read.append(block)
        return read_block(folder, block, manifest)

    monkeypatch.setattr(order, "read_block", counted)
    epoch(CorpusReader(numbered, 1, seed=0))
    assert len(read) == 7


@pytest.mark.parametrize(("batch_size", "world"), [(20, 8), (16, 3), (8, 16), (7, 2)])
def test_a_batch_that_can_not_be_shared_out_is_refused(tiny_shards, batch_size, world):
    with pytest.raises(ValueError, match=rf"batch_size {batch_size} .* {world} processes .*multiple of 16"):
        CorpusReader(tiny_shards, batch_size, 0, 0, world)


def test_a_corpus_smaller_than_a_batch_is_refused(tiny_shards):
    with pytest.raises(ValueError, match=r"batch_size 1600 is more than the 162 rows"):
        CorpusReader(tiny_shards, 1600, seed=0)


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        CorpusReader(str(tmp_path), 16, seed=0)
