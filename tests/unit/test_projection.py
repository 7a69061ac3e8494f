"""The hidden-state loss against the formula in float64, whatever the slices, masks and dtypes."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distill import projection
from distill.projection import HiddenProjection


def a_case(dtype: torch.dtype = torch.float32) -> tuple[HiddenProjection, Tensor, Tensor, Tensor]:
    """A projection of 12 to 20, states of 3 sequences, the teacher's, a mask."""
    torch.manual_seed(0)
    layer = HiddenProjection(12, 20, std=0.5)
    torch.nn.init.normal_(layer.bias)
    student, teacher = torch.randn(3, 7, 12), torch.randn(3, 7, 20)
    mask = (torch.arange(7) < torch.tensor([7, 4, 1])[:, None]).long()
    return layer.to(dtype), student.to(dtype).requires_grad_(), teacher.to(dtype), mask


def formula(layer: HiddenProjection, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    projected = functional.linear(student.double(), layer.weight.double(), layer.bias.double())
    return ((projected - teacher.double()).square().mean(-1) * mask).sum()


def gradients(loss: Tensor, layer: HiddenProjection, student: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(3 * loss, [student, layer.weight, layer.bias]))


@pytest.mark.parametrize("entries", [1, 100, 1 << 20], ids="slices of {} entries".format)
def test_value_and_gradients_are_those_of_the_formula(monkeypatch, entries):
    monkeypatch.setitem(projection.SLICE, "cpu", entries)
    layer, student, teacher, mask = a_case()
    loss, expected = layer(student, teacher, mask), formula(layer, student, teacher, mask)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    wanted = gradients(expected, layer, student)
    for one, other in zip(gradients(loss, layer, student), wanted, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-5)


def test_hidden_positions_change_nothing():
    layer, student, teacher, mask = a_case()
    poisoned = teacher.where(mask[..., None] > 0, 1e30)
    one, other = layer(student, teacher, mask), layer(student, poisoned, mask)
    assert torch.equal(one, other)
    for a, b in zip(gradients(one, layer, student), gradients(other, layer, student), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("entries", [100, 1 << 20], ids="slices of {} entries".format)
def test_bf16_states_are_summed_in_fp32(monkeypatch, entries):
    monkeypatch.setitem(projection.SLICE, "cpu", entries)
    layer, student, teacher, mask = a_case(torch.bfloat16)
    loss, expected = layer(student, teacher, mask), formula(layer, student, teacher, mask)
    assert loss.dtype == torch.float32
    eps = torch.finfo(torch.bfloat16).eps
    assert loss.item() == pytest.approx(expected.item(), rel=eps)
    wanted = gradients(expected, layer, student)
    for one, other in zip(gradients(loss, layer, student), wanted, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other.double()).norm() <= 3 * eps * other.double().norm()


def test_a_teacher_of_another_dtype_is_compared_in_the_students():
    layer, student, teacher, mask = a_case()
    narrow = teacher.bfloat16()
    assert torch.equal(layer(student, narrow, mask), layer(student, narrow.float(), mask))


def test_autocast_leaves_the_projection_in_fp32():
    layer, student, teacher, mask = a_case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer(student, teacher, mask)
    assert torch.equal(inside, layer(student, teacher, mask))


def test_a_projection_begins_as_the_students_own_layers():
    layer = HiddenProjection(120, 200, std=0.5)
    assert layer.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert not layer.bias.any()


def test_no_projected_tensor_is_kept_for_backward():
    layer, student, teacher, mask = a_case()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(student, teacher, mask)
    assert max(tensor.shape[-1] for tensor in kept if tensor.ndim == 2 and len(tensor) == 21) == 12


def test_small_errors_of_many_rows_do_not_vanish_in_fp16():
    """Their means over the rows are below what fp16 has."""
    torch.manual_seed(0)
    layer, student = HiddenProjection(4, 6, std=0.5).half(), torch.randn(1, 20_000, 4).half()
    with torch.no_grad():
        teacher = functional.linear(student, layer.weight) + 0.01 * torch.randn(1, 20_000, 6).half()
    states = student.requires_grad_(), teacher, torch.ones(1, 20_000)
    totals = layer(*states), formula(layer, *states)
    one, other = (gradients(total, layer, student)[1].double() for total in totals)
    assert (one - other).norm() <= 0.02 * other.norm()


def test_many_rows_do_not_overflow_fp16():
    torch.manual_seed(0)
    layer = HiddenProjection(4, 6, std=0.5).half()
    student, teacher = 10 * torch.ones(1, 20_000, 4).half(), torch.zeros(1, 20_000, 6).half()
    loss = layer(student.requires_grad_(), teacher, torch.ones(1, 20_000)) / 20_000
    expected = formula(layer, student, teacher, torch.ones(1, 20_000)) / 20_000
    wanted = gradients(expected, layer, student)
    for one, other in zip(gradients(loss, layer, student), wanted, strict=True):
        assert (one.double() - other.double()).norm() <= 0.01 * other.double().norm()
