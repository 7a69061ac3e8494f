"""Micro-batches as a function of the step: nothing lost, nothing twice, whoever reads."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipeline.stream import CorpusReader
from data_pipeline.tasks import Encoded
from distill.encoders import Batch
from distill.sources import CorpusSource, TaskSource, task_batch


def some_task(examples: int, seed: int = 0) -> Encoded:
    """Examples of 3 to 12 tokens; the first token is the example's number, and so is its label."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 13, examples)
    ids = [np.array([number, *rng.integers(5, 60, n - 1)]) for number, n in enumerate(lengths)]
    return Encoded(ids, [np.arange(n) // 2 % 2 for n in lengths], np.arange(examples), pad=99)


def task_source(data: Encoded, batch_size: int, micro: int, rank: int = 0, world: int = 1) -> TaskSource:
    return TaskSource(data, batch_size, micro, seed=3, rank=rank, world=world)


def examples_of(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.labels for batch in batches]).tolist()


def rows_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    """The rows of micro-batches without their padding."""
    return [
        tuple(ids[: mask.sum()].tolist())
        for batch in batches
        for ids, mask in zip(batch.ids, batch.mask, strict=True)
    ]


def corpus_source(shards: str, batch_size: int, micro: int, rank: int = 0, world: int = 1) -> CorpusSource:
    return CorpusSource(CorpusReader(shards, batch_size, 3, rank, world), micro)


# ---- corpus


def test_corpus_rows_come_in_the_readers_order(tiny_shards):
    reader = CorpusReader(tiny_shards, 16, 3)
    rows = reader.step(2)
    expected = [tuple(ids[:n].tolist()) for ids, n in zip(rows.ids, rows.lengths, strict=True)]
    batches = corpus_source(tiny_shards, 16, 5).micro_batches(2)
    assert [len(batch.ids) for batch in batches] == [5, 5, 5, 1]
    assert rows_of(batches) == expected


def test_corpus_segments_begin_at_the_boundary(tiny_shards):
    rows = CorpusReader(tiny_shards, 16, 3).step(0)
    (batch,) = corpus_source(tiny_shards, 16, 16).micro_batches(0)
    for segments, length, boundary in zip(batch.segments, rows.lengths, rows.boundaries, strict=True):
        ones = segments.nonzero().flatten().tolist()
        assert ones == list(range(boundary, length))


def test_corpus_batches_are_cut_to_their_longest_row(tiny_shards):
    for batch in corpus_source(tiny_shards, 16, 4).micro_batches(1):
        assert batch.ids.shape[1] == batch.mask.sum(1).max()


def test_corpus_batches_can_keep_the_packings_length(tiny_shards):
    reader = CorpusReader(tiny_shards, 16, 3)
    (batch,) = CorpusSource(reader, 16, pad_to_longest=False).micro_batches(1)
    assert batch.ids.shape == batch.mask.shape == batch.segments.shape == (16, 32)
    assert rows_of([batch]) == rows_of(corpus_source(tiny_shards, 16, 16).micro_batches(1))


@pytest.mark.parametrize("world", [2, 4])
def test_corpus_steps_take_the_same_rows_on_any_number_of_ranks(tiny_shards, world):
    for step in (0, 3):
        whole = rows_of(corpus_source(tiny_shards, 16, 16).micro_batches(step))
        shares = [corpus_source(tiny_shards, 16, 16 // world, r, world) for r in range(world)]
        parts = [row for share in shares for row in rows_of(share.micro_batches(step))]
        assert sorted(parts) == sorted(whole)


# ---- tasks


def test_an_epoch_takes_every_example_at_most_once_and_all_that_fill_batches():
    source = task_source(some_task(50), 8, 4)
    taken = [example for step in range(6) for example in examples_of(source.micro_batches(step))]
    assert source.steps_per_epoch == 6
    assert len(taken) == len(set(taken)) == 48


def test_epochs_differ_in_order():
    source = task_source(some_task(48), 8, 8)
    epochs = [[examples_of(source.micro_batches(6 * e + step)) for step in range(6)] for e in (0, 1)]
    assert epochs[0] != epochs[1]


def test_a_step_is_the_same_whenever_it_is_asked_for():
    data = some_task(48)
    source = task_source(data, 8, 8)
    expected = examples_of(task_source(data, 8, 8).micro_batches(7))
    for step in (7, 0, 13, 7):
        taken = examples_of(source.micro_batches(step))
    assert taken == expected


@pytest.mark.parametrize("world", [2, 4])
def test_task_steps_take_the_same_examples_on_any_number_of_ranks(world):
    data = some_task(50)
    for step in (0, 9):
        whole = examples_of(task_source(data, 8, 8).micro_batches(step))
        shares = [task_source(data, 8, 8 // world, r, world) for r in range(world)]
        parts = [example for share in shares for example in examples_of(share.micro_batches(step))]
        assert sorted(parts) == sorted(whole)


def test_task_micro_batches_have_the_size_asked_for():
    assert [len(b.ids) for b in task_source(some_task(50), 8, 2).micro_batches(0)] == [2, 2, 2, 2]


def test_a_task_batch_is_padded_to_its_longest_example():
    data = some_task(20)
    index = np.array([3, 17, 5])
    batch = task_batch(data, index)
    assert batch.ids.shape[1] == data.lengths[index].max()
    for row, example in enumerate(index):
        length = data.lengths[example]
        assert batch.ids[row, :length].tolist() == data.ids[example].tolist()
        assert batch.segments[row, :length].tolist() == data.segments[example].tolist()
        assert set(batch.ids[row, length:].tolist()) <= {data.pad}
        assert batch.mask[row].tolist() == [1] * length + [0] * (batch.ids.shape[1] - length)
    assert batch.labels.tolist() == index.tolist()


def test_data_is_told_from_other_data_by_what_differs():
    data = some_task(20)
    own = task_source(data, 8, 8).identity
    assert own == task_source(some_task(20), 4, 2, rank=1, world=2).identity
    others = {
        "examples": data.rows(0, 19),
        "tokens": replace(data, ids=[*data.ids[:-1], data.ids[-1] + 1]),
        "labels": replace(data, labels=data.labels + 1),
        "teacher's logits": replace(data, teacher=np.zeros((20, 2), np.float32)),
    }
    for name, other in others.items():
        found = task_source(other, 8, 8).identity
        differing = {key for key in found if found[key] != own.get(key)}
        assert differing == ({"examples", "tokens", "labels"} if name == "examples" else {name})
    ids = np.concatenate(data.ids)  # cut elsewhere
    cut = [ids[:1], ids[1:]]
    assert (
        replace(data, ids=cut).identity["tokens"]
        != replace(data, ids=[ids[:2], ids[2:]]).identity["tokens"]
    )


def test_a_task_batch_can_keep_a_width():
    """So that what counts padding depends on neither micro-batches nor ranks."""
    data = some_task(50)
    wide = TaskSource(data, 8, 2, seed=3, rank=1, world=2, width=16).micro_batches(1)
    assert {batch.ids.shape for batch in wide} == {(2, 16)}
    assert rows_of(wide) == rows_of(task_source(data, 8, 2, 1, 2).micro_batches(1))
