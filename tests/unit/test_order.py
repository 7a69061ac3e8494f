"""The order of a corpus is a pure function of (seed, epoch, step), whatever the number of ranks."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import order
from data_pipeline.order import CorpusOrder, stream_count

few = settings(max_examples=20)  # each walks through whole epochs


@st.composite
def corpora(draw):
    """Rows of some blocks, and a batch size of which the corpus holds a step at least."""
    batch_size = draw(st.integers(1, 48))
    blocks = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    if sum(blocks) < batch_size:
        blocks.append(batch_size)
    return blocks, batch_size


def the_order(blocks: list[int], batch_size: int, seed: int = 0) -> CorpusOrder:
    streams = stream_count(batch_size)
    return CorpusOrder([blocks], streams, batch_size // streams, seed)


def served(the: CorpusOrder, epoch: int, rank: int = 0, world: int = 1) -> list[list[tuple[int, int]]]:
    """(block, row) of every row of each step of an epoch that a rank serves."""
    mine = range(rank, the.streams, world)
    steps = []
    for window in range(-(-the.steps_per_epoch // the.window_steps)):
        blocks, rows = the.window(epoch, window, mine)
        for step in range(the.steps(window)):
            columns = slice(step * the.rows_per_step, (step + 1) * the.rows_per_step)
            pairs = zip(blocks[:, columns].ravel(), rows[:, columns].ravel(), strict=True)
            steps.append([(int(block), int(row)) for block, row in pairs])
    return steps


@pytest.fixture(params=[(3, 1), (32_768, 512)], ids=["small windows", "usual windows"], autouse=True)
def _windows(request):
    """Everything holds for windows smaller than a stream as well as for larger ones."""
    with patch.multiple(order, WINDOW_ROWS=request.param[0], LEAST=request.param[1]):
        yield


@few
@given(corpora(), st.integers(0, 5), st.integers(0, 2))
def test_no_row_comes_twice_in_an_epoch_and_each_exists(corpus, seed, epoch):
    blocks, batch_size = corpus
    the = the_order(blocks, batch_size, seed)
    rows = [row for step in served(the, epoch) for row in step]
    assert len(set(rows)) == len(rows) == the.steps_per_epoch * batch_size
    assert all(row < blocks[block] for block, row in rows)


@few
@given(corpora(), st.integers(0, 5))
def test_an_epoch_is_every_row_but_those_that_fill_no_step(corpus, seed):
    blocks, batch_size = corpus
    the = the_order(blocks, batch_size, seed)
    left = sum(blocks) - the.steps_per_epoch * batch_size
    assert 0 <= left < batch_size + the.streams
    if sum(blocks) % batch_size == 0:
        assert left == 0 or the.rows_per_step > 1


@few
@given(corpora(), st.integers(0, 5), st.integers(1, 16))
def test_the_ranks_together_take_what_one_rank_takes(corpus, seed, world):
    the = the_order(corpus[0], corpus[1] * world, seed)
    alone = served(the, 1)
    ranks = [served(the, 1, rank, world) for rank in range(world)]
    for step, expected in enumerate(alone):
        together = [row for rank in ranks for row in rank[step]]
        assert sorted(together) == sorted(expected)
        assert {len(rank[step]) for rank in ranks} == {corpus[1]}


@pytest.mark.parametrize(
    ("batch_size", "streams"), [(1, 1), (32, 32), (48, 48), (1000, 1000), (1024, 1024), (4096, 1024)]
)
def test_streams_are_the_greatest_divisor_that_is_allowed(batch_size, streams):
    assert stream_count(batch_size) == streams


@given(st.integers(1, 64), st.integers(1, 16))
def test_any_number_of_ranks_that_divides_a_batch_up_to_1024_divides_its_streams(world, share):
    assert stream_count(world * share) % world == 0


def test_epochs_and_seeds_differ():
    first, second = (served(the_order([7] * 30, 16), epoch) for epoch in (0, 1))
    assert first != second
    assert first != served(the_order([7] * 30, 16, seed=1), 0)


def test_what_one_epoch_leaves_over_comes_in_another():
    the = the_order([3] * 9, 16)  # 27 rows, of which a step takes 16
    rows = {row for epoch in range(20) for step in served(the, epoch) for row in step}
    assert len(rows) == 27


def test_rows_of_a_single_block_are_shuffled_anew_in_every_epoch():
    the = the_order([100], 1)
    first, second = ([row for step in served(the, epoch) for row in step] for epoch in (0, 1))
    assert first != second
    assert first != sorted(first)
    assert sorted(first) == sorted(second) == [(0, row) for row in range(100)]


def test_epochs_take_the_variants_in_turn():
    the = CorpusOrder([[4, 4], [9], [8, 1]], streams=2, rows_per_step=1, seed=0)
    assert the.rows_per_stream == 4  # as many steps in every epoch
    for epoch, rows in ((0, [4, 4]), (1, [9]), (2, [8, 1]), (3, [4, 4])):
        assert sorted(the.blocks(epoch)) == list(range(len(rows)))
        assert all(row < rows[block] for step in served(the, epoch) for block, row in step)


def test_no_two_permutations_share_a_generator():
    """NumPy gives the seeds [s] and [s, 0] the same state: purposes are told apart."""
    the = CorpusOrder([[1] * 50], 1, 1, 0)
    the.window_steps = 50
    rows, blocks = the.window(0, 0, [0])[1], the.blocks(0)
    positions = the.window(0, 0, [0])[0][0]
    assert not np.array_equal(the.step_order(0, 0), blocks)
    assert not np.array_equal(positions, blocks[blocks])
    assert (rows == 0).all()


def test_every_stream_and_every_window_has_an_order_of_its_own():
    the = CorpusOrder([[200]], 2, 1, 0)
    the.window_steps = 50
    first, second = the.window(0, 0, [0, 1])[1]
    assert not np.array_equal(first, second - 100)
    assert not np.array_equal(the.step_order(0, 0), the.step_order(0, 1))
    assert not np.array_equal(the.step_order(0, 0), the.step_order(1, 0))
