"""Relation losses against the formula in float64: values, gradients, masks, unlike heads, any tile."""

import itertools

import pytest
import torch
from torch import Tensor

from distill import relations
from distill.attention import Heads
from distill.relations import regroup, relation_loss

KINDS = ("qk", "qq", "kk", "vv")


def some_heads(seed: int, heads: int, size: int, batch: int = 3, length: int = 11) -> Heads:
    generator = torch.Generator().manual_seed(seed)
    parts = (torch.randn(batch, heads, length, size, generator=generator) for _ in range(3))
    return Heads(*(part.requires_grad_() for part in parts), size**-0.5)


def a_mask(*lengths: int, width: int = 11) -> Tensor:
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def naive(student: Heads, teacher: Heads, kind: str, heads: int, queries: Tensor, keys: Tensor) -> Tensor:
    """The formula row by row, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    sides = [[regroup(part.double(), heads) for part in model.sides(kind)] for model in (student, teacher)]
    batch, count, length, _ = sides[0][0].shape
    for row, head, i in itertools.product(range(batch), range(count), range(length)):
        if not queries[row, i]:
            continue
        seen = keys[row].bool()
        own, target = (
            (right[row, head, seen] @ left[row, head, i] / left.shape[-1] ** 0.5).softmax(0)
            for left, right in sides
        )
        total = total + (target * (target / own).log()).sum()
    return total / count


def gradients(loss: Tensor, heads: Heads) -> list[Tensor]:
    found = torch.autograd.grad(loss, heads[:3], allow_unused=True)
    return [part if part is not None else torch.zeros(()) for part in found]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("student", "teacher", "heads"), [((4, 6), (4, 16), 0), ((2, 12), (8, 6), 4), ((3, 8), (4, 12), 12)]
)
@pytest.mark.parametrize("tile", [1, 200, 1 << 22])
def test_value_and_gradients_are_those_of_the_formula(monkeypatch, kind, student, teacher, heads, tile):
    monkeypatch.setattr(relations, "TILE", tile)
    own, other = some_heads(0, *student), some_heads(1, *teacher)
    queries, keys = a_mask(11, 7, 1), a_mask(11, 7, 1)
    loss = relation_loss(own, other, kind, heads, queries, keys)
    expected = naive(own, other, kind, heads, queries, keys)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for found, wanted in zip(gradients(loss, own), gradients(expected, own), strict=True):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-6)
    assert all(part.grad is None for part in other[:3])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_relates_as_its_teacher_does_has_no_loss(kind):
    own = some_heads(3, 4, 6)
    loss = relation_loss(own, own, kind, 0, a_mask(11, 7, 2), a_mask(11, 7, 2))
    assert abs(loss.item()) < 1e-5
    assert max(part.abs().max() for part in gradients(loss, own)) < 1e-5


def test_padding_changes_nothing_whatever_it_holds():
    own, other = some_heads(0, 4, 6), some_heads(1, 4, 16)
    mask = a_mask(6, 4, 5)

    def cut(heads: Heads) -> Heads:
        return Heads(*(part[:, :, :6] for part in heads[:3]), heads.scaling)

    def poisoned(heads: Heads) -> Heads:
        hidden = (mask == 0)[:, None, :, None]
        return Heads(*(part.masked_fill(hidden, 1e4) for part in heads[:3]), heads.scaling)

    for kind in KINDS:
        short = relation_loss(cut(own), cut(other), kind, 0, mask[:, :6], mask[:, :6])
        long = relation_loss(poisoned(own), poisoned(other), kind, 0, mask, mask)
        assert long.item() == pytest.approx(short.item(), rel=1e-5)


def test_rows_of_padding_count_where_asked_and_never_as_columns():
    own, other, mask = some_heads(0, 4, 6), some_heads(1, 4, 16), a_mask(6, 4, 5)
    loss = relation_loss(own, other, "qk", 0, torch.ones_like(mask), mask)
    assert loss.item() == pytest.approx(
        naive(own, other, "qk", 0, torch.ones_like(mask), mask).item(), rel=1e-5
    )


def test_batches_add_up():
    own, other, mask = some_heads(0, 4, 6), some_heads(1, 4, 16), a_mask(11, 7, 3)

    def row(heads: Heads, n: int) -> Heads:
        return Heads(*(part[n : n + 1] for part in heads[:3]), heads.scaling)

    parts = [
        relation_loss(row(own, n), row(other, n), "vv", 0, mask[n : n + 1], mask[n : n + 1])
        for n in range(3)
    ]
    assert sum(part.item() for part in parts) == pytest.approx(
        relation_loss(own, other, "vv", 0, mask, mask).item(), rel=1e-5
    )


def test_bf16_inputs_are_compared_in_fp32():
    own, other, mask = some_heads(0, 4, 6), some_heads(1, 4, 16), a_mask(11, 7, 3)
    half = [
        Heads(*(part.detach().bfloat16() for part in heads[:3]), heads.scaling) for heads in (own, other)
    ]
    for part in half[0][:3]:
        part.requires_grad_()
    loss = relation_loss(*half, "qq", 0, mask, mask)
    assert loss.dtype == torch.float32
    assert gradients(loss, half[0])[0].dtype == torch.bfloat16
    exact = naive(*half, "qq", 0, mask, mask)
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_autocast_leaves_the_relations_in_fp32():
    case = some_heads(0, 4, 6), some_heads(1, 4, 16), "vv", 0, a_mask(11, 7, 3), a_mask(11, 7, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = relation_loss(*case)
    assert torch.equal(inside, relation_loss(*case))


def test_a_row_without_keys_loses_nothing():
    own, other, mask = some_heads(0, 4, 6), some_heads(1, 4, 16), a_mask(11, 7, 0)
    loss = relation_loss(own, other, "qk", 0, mask, mask)
    first = [
        heads._replace(**{side: getattr(heads, side)[:2] for side in ("query", "key", "value")})
        for heads in (own, other)
    ]
    torch.testing.assert_close(loss, relation_loss(*first, "qk", 0, mask[:2], mask[:2]))
    assert all(part.isfinite().all() for part in gradients(loss, own))


def test_regrouped_heads_lie_side_by_side():
    part = torch.arange(2 * 3 * 5 * 4.0).reshape(2, 3, 5, 4)
    two = regroup(part, 2)
    assert two.shape == (2, 2, 5, 6)
    assert torch.equal(two[1, :, 2].flatten(), part[1, :, 2].flatten())
    assert regroup(part, 0) is part
