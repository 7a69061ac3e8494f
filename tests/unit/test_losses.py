"""The losses against the formulas as the papers write them, in float64, with whole score matrices."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distill import losses
from distill.attention import Heads
from distill.losses import (
    attention_score_loss,
    label_loss,
    multi_label_loss,
    soft_multi_label_loss,
    soft_target_loss,
    squared_error,
)

# (length, student's head size, teacher's): both sides of length = the sum of the head sizes
SHAPES = [(5, 26, 32), (57, 26, 32), (58, 26, 32), (150, 26, 32), (40, 24, 64), (120, 24, 64)]
SHAPES += [(1, 32, 32), (64, 32, 32), (100, 64, 32)]


def some_heads(generator: torch.Generator, length: int, size: int) -> Heads:
    """Random queries and keys of 2 sequences and 3 heads."""
    query, key = torch.randn(2, 2, 3, length, size, generator=generator)
    return Heads(query.requires_grad_(), key.requires_grad_(), query, 0.5 + 1 / size)


def random_mask(generator: torch.Generator, length: int) -> Tensor:
    return (torch.rand(2, length, generator=generator) < 0.7).long()


def naive_score_loss(student: Heads, teacher: Heads, queries: Tensor, keys: Tensor) -> Tensor:
    """Sum of squared differences of the score matrices, where both masks allow."""
    own, other = (heads.query @ heads.key.mT * heads.scaling for heads in (student, teacher))
    error = own - other
    return (error * queries[:, None, :, None] * keys[:, None, None, :]).square().sum()


def changed(heads: Heads, change: Callable[[Tensor], Tensor]) -> Heads:
    """Heads with other queries and keys, leaves again."""
    query, key = (change(part.detach()).requires_grad_() for part in heads[:2])
    return heads._replace(query=query, key=key)


def doubled(heads: Heads) -> Heads:
    return changed(heads, Tensor.double)


def gradients(loss: Tensor, heads: Heads) -> list[Tensor]:
    return [gradient.double() for gradient in torch.autograd.grad(loss, heads[:2])]


@pytest.fixture(params=SHAPES, ids=str)
def case(request) -> tuple[Heads, Heads, Tensor, Tensor]:
    """Student, teacher, query mask and key mask."""
    length, student, teacher = request.param
    generator = torch.Generator().manual_seed(length)
    return (
        some_heads(generator, length, student),
        some_heads(generator, length, teacher),
        random_mask(generator, length),
        random_mask(generator, length),
    )


def test_score_loss_equals_the_naive_formula(case):
    student, teacher, queries, keys = case
    expected = naive_score_loss(doubled(student), doubled(teacher), queries, keys)
    torch.testing.assert_close(attention_score_loss(*case).double(), expected, rtol=1e-5, atol=0)


def test_score_gradients_equal_the_naive_formulas(case):
    student, teacher, queries, keys = case
    wide = doubled(student)
    expected = gradients(0.3 * naive_score_loss(wide, doubled(teacher), queries, keys), wide)
    for own, naive in zip(gradients(0.3 * attention_score_loss(*case), student), expected, strict=True):
        assert (own - naive).norm() <= 1e-5 * naive.norm()


def test_score_loss_has_the_slope_of_its_gradient(case):
    """Along the queries the loss is a parabola, whose central difference is exact for any width."""
    student, teacher, queries, keys = case
    query = student.query
    direction = torch.randn(query.shape, generator=torch.Generator().manual_seed(1))
    ends = [
        attention_score_loss(student._replace(query=query + side * direction), teacher, queries, keys)
        for side in (1, -1)
    ]
    gradient, _ = gradients(attention_score_loss(*case), student)
    slope, scale = (gradient * direction).sum(), ends[0].detach().double()
    assert abs((ends[0] - ends[1]).double() / 2 - slope) <= 1e-5 * scale


def test_values_under_the_masks_change_nothing(case):
    student, teacher, queries, keys = case
    poisoned = []
    for heads in (student, teacher):
        masks = queries[:, None, :, None], keys[:, None, :, None]
        filled = [t.detach().where(m > 0, 1e30) for t, m in zip(heads[:2], masks, strict=True)]
        query, key = (tensor.requires_grad_() for tensor in filled)
        poisoned.append(heads._replace(query=query, key=key))
    clean, other = attention_score_loss(*case), attention_score_loss(*poisoned, queries, keys)
    assert torch.equal(clean, other)
    for a, b in zip(gradients(clean, student), gradients(other, poisoned[0]), strict=True):
        assert torch.equal(a, b)


def test_bf16_queries_give_the_loss_of_their_values(case):
    student, teacher, queries, keys = case
    small = [changed(heads, Tensor.bfloat16) for heads in (student, teacher)]
    loss = attention_score_loss(*small, queries, keys)
    wide = doubled(small[0])
    expected = naive_score_loss(wide, doubled(small[1]), queries, keys)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    for own, naive in zip(gradients(loss, small[0]), gradients(expected, wide), strict=True):
        assert (own - naive).norm() <= torch.finfo(torch.bfloat16).eps * naive.norm()


def test_the_teacher_gets_no_gradient(case):
    student, teacher, _, _ = case
    attention_score_loss(*case).backward()
    assert all(tensor.grad is not None for tensor in student[:2])
    assert all(tensor.grad is None for tensor in teacher[:2])


def test_equal_scores_lose_nothing(case):
    """To the rounding of the scores' own size: long sequences never form the difference."""
    student, _, queries, keys = case
    nothing = changed(student, torch.zeros_like)
    size = naive_score_loss(student, nothing, queries, keys)
    assert abs(attention_score_loss(student, student, queries, keys)) <= 1e-6 * size


def test_autocast_leaves_the_scores_in_fp32(case):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = attention_score_loss(*case)
    assert torch.equal(inside, attention_score_loss(*case))


def test_no_matrix_of_scores_is_written_for_long_sequences():
    class LargestTensor(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, Tensor):
                    self.numbers = max(self.numbers, tensor.numel())
            return out

    generator, length = torch.Generator().manual_seed(0), 496
    student, teacher = some_heads(generator, length, 24), some_heads(generator, length, 32)
    mask = torch.ones(2, length)
    with LargestTensor() as largest:
        attention_score_loss(student, teacher, mask, mask).backward()
    assert largest.numbers == 2 * 3 * length * (24 + 32)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 10.0])
def test_soft_targets_are_the_divergence_times_the_squared_temperature(temperature):
    student, teacher = 3 * torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    own, target = (torch.softmax(x.double() / temperature, dim=-1) for x in (student, teacher))
    expected = temperature**2 * (target * (target / own).log()).sum()
    torch.testing.assert_close(soft_target_loss(student, teacher, temperature), expected.float())


def test_soft_target_gradients_are_the_formulas_over_pieces(monkeypatch):
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", 20)  # 3 rows of 6 classes
    student, teacher = 3 * torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))
    own, plain = student.clone().requires_grad_(), student.double().requires_grad_()
    (2.5 * soft_target_loss(own, teacher, 2.0)).backward()
    target = torch.softmax(teacher.double() / 2, dim=-1)
    (2.5 * 4 * (target * (target.log() - torch.log_softmax(plain / 2, dim=-1))).sum()).backward()
    torch.testing.assert_close(own.grad, plain.grad.float())


def test_soft_targets_of_a_vocabulary_are_never_whole_in_fp32():
    class LargestFloat(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
                self.numbers = max(self.numbers, out.numel())
            return out

    rows, classes = 400, 30522
    student = torch.randn(rows, classes, dtype=torch.bfloat16, requires_grad=True)
    with LargestFloat() as largest:
        soft_target_loss(student, torch.randn_like(student), 2.0).backward()
    assert largest.numbers <= losses.LOGITS_AT_ONCE < rows * classes
    assert student.grad.dtype == torch.bfloat16


def test_soft_targets_lose_nothing_at_equality():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = soft_target_loss(logits, logits.detach(), 3.0)
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().max() < 1e-6


def test_soft_target_gradients_keep_their_size_at_any_temperature():
    student, teacher = 0.01 * torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    norms = []
    for temperature in (1.0, 4.0, 20.0):
        logits = student.clone().requires_grad_()
        soft_target_loss(logits, teacher, temperature).backward()
        norms.append(logits.grad.norm().item())
    assert norms == pytest.approx([norms[0]] * 3, rel=0.02)


def test_label_loss_is_the_sum_of_surprises():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 3, 0])
    expected = -torch.softmax(logits.double(), dim=-1)[torch.arange(6), labels].log().sum()
    torch.testing.assert_close(label_loss(logits, labels), expected.float())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_labels_are_those_of_two_classes_each(temperature):
    """A label's logit beside one of 0 is a softmax of two classes."""
    student, teacher = 3 * torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    own, plain = (student.clone().requires_grad_() for _ in range(2))
    loss = soft_multi_label_loss(own, teacher, temperature)
    pairs = (torch.stack([x, torch.zeros_like(x)], dim=-1).flatten(0, 1) for x in (plain, teacher))
    expected = soft_target_loss(*pairs, temperature)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, y)[0] for x, y in ((loss, own), (expected, plain))))


def test_multi_label_loss_is_the_sum_of_surprises():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = (logits.roll(1, dims=0) > 0).float()
    chance = logits.double().sigmoid()
    expected = -torch.where(labels > 0, chance, 1 - chance).log().sum()
    torch.testing.assert_close(multi_label_loss(logits, labels), expected.float())


@pytest.mark.parametrize("kind", ["soft", "labels", "squares", "soft labels", "several labels"])
def test_bf16_logits_are_compared_in_fp32(kind):
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 50, 4, generator=generator).bfloat16()
    classes, labels = teacher.argmax(dim=-1), (teacher > 0).float()
    loss = {
        "soft": lambda own, other: soft_target_loss(own, other, 3.0),
        "labels": lambda own, _: label_loss(own, classes),
        "squares": squared_error,
        "soft labels": lambda own, other: soft_multi_label_loss(own, other, 3.0),
        "several labels": lambda own, _: multi_label_loss(own, labels),
    }[kind]
    assert torch.equal(loss(student, teacher), loss(student.float(), teacher.float()))


def test_squared_error_is_the_sum_over_all():
    values, targets = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, -2.0, 1.0])
    assert squared_error(values, targets) == 1.25
