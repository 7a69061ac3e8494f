"""One pass over memory gives what torch's several give."""

import pytest
import torch
from torch import Tensor, nn

from distill.int8_rows import attend, attend_rows, gelu_rows, library, norm_rows_, round_rows, scale_rows_

SHAPES = [(1, 1), (3, 16), (7, 33), (600, 48), (65, 768)]


def restored(levels: Tensor, scales: Tensor) -> Tensor:
    """The numbers that levels stand for."""
    return (levels.double() - 128) * scales.double()


def check_rounded(levels: Tensor, scales: Tensor, expected: Tensor) -> None:
    """Levels are those nearest to the expected rows, whose largest magnitude has the last one."""
    largest = expected.double().abs().amax(1, keepdim=True)
    torch.testing.assert_close(scales.double() * 127, largest, rtol=1e-5, atol=2e-6)
    error = (restored(levels, scales) - expected.double()).abs()
    assert (error <= 0.5001 * scales.double() + 2e-6).all()
    assert levels.min() >= 1


def some(shape: tuple[int, int]) -> Tensor:
    torch.manual_seed(shape[0])
    return torch.randn(shape) * torch.rand(shape[0], 1) * 30


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_rounded_to_their_nearest_level(shape: tuple[int, int]) -> None:
    rows = some(shape)
    rows[0] *= 1e6
    check_rounded(*round_rows(rows), rows)
    check_rounded(*round_rows(rows.mT.contiguous().mT), rows)  # of another stride


def test_rows_of_zeros_and_of_tiny_numbers_are_levels_too() -> None:
    levels, scales = round_rows(torch.tensor([[0.0, -0.0], [1e-42, -1e-42]]))
    assert levels.tolist() == [[128, 128], [128, 128]]
    assert (scales > 0).all()
    assert scales.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_scaled_in_place(shape: tuple[int, int]) -> None:
    rows, factors, bias = some(shape), torch.rand(shape[0], 1), torch.randn(shape[1])
    expected = rows.double() * factors.double() + bias.double()
    got = scale_rows_(rows, factors, bias)
    assert got is rows
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gelu_is_the_one_with_erf(shape: tuple[int, int]) -> None:
    rows, factors, bias = some(shape), torch.rand(shape[0], 1), torch.randn(shape[1])
    expected = nn.functional.gelu(rows.double() * factors.double() + bias.double())
    check_rounded(*gelu_rows(rows, factors, bias), expected)


def test_gelu_over_all_of_its_range() -> None:
    points = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e30, -100.0, 1e-30, -1e-30, 0.0])])
    one, none = torch.ones(len(points), 1), torch.zeros(1)
    levels, scales = gelu_rows(points[:, None].contiguous(), one, none)  # rows of one: the scale is exact
    got, expected = restored(levels, scales)[:, 0], nn.functional.gelu(points.double())
    assert (got - expected).abs().max() < 2e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_norm_is_that_of_the_scaled_sum(shape: tuple[int, int]) -> None:
    rows, factors, bias = some(shape), torch.rand(shape[0], 1), torch.randn(shape[1])
    residual = some(shape).flip(0)
    norm = nn.LayerNorm(shape[1], eps=1e-5).requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    expected = norm.double()(rows.double() * factors.double() + bias.double() + residual.double())
    levels, scales = norm_rows_(rows, factors, bias, residual, norm.float())
    torch.testing.assert_close(rows.double(), expected, rtol=1e-4, atol=1e-4)
    check_rounded(levels, scales, rows)


def test_what_is_not_finite_is_not_hidden() -> None:
    rows = torch.ones(2, 8)
    rows[1, 3] = torch.nan
    norm = nn.LayerNorm(8).requires_grad_(False)
    norm_rows_(rows, torch.ones(2, 1), torch.zeros(8), torch.zeros(2, 8), norm)
    assert rows[0].isfinite().all()
    assert rows[1].isnan().all()
    rows[0, 5] = torch.inf
    for _, scales in (round_rows(rows), gelu_rows(rows, torch.ones(2, 1), torch.zeros(8))):
        assert scales.isnan().all()


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    library.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"false can't compile int8_rows\.cpp"):
            round_rows(torch.ones(1, 1))
    finally:
        library.cache_clear()


ATTENTION = [(1, 1, 1, 1), (2, 5, 2, 16), (3, 37, 5, 26), (2, 130, 3, 64), (4, 16, 12, 32)]


def some_sides(sequences: int, length: int, width: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Queries, keys and values to be scaled, their biases, and factors."""
    torch.manual_seed(length)
    sides = [torch.randn(sequences, length, width) for _ in range(3)]
    return sides, [torch.randn(width) for _ in range(3)], torch.rand(sequences * length, 1)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", ATTENTION, ids=str)
def test_attention_is_the_formula(shape: tuple[int, int, int, int], masked: bool, scaled: bool) -> None:
    sequences, length, heads, size = shape
    sides, biases, factors = some_sides(sequences, length, heads * size)
    there = torch.rand(sequences, length) > 0.4 * masked
    there[:, length // 2] = True
    whole = [side.double() for side in sides]
    if not scaled:
        own = factors.view(sequences, length, 1).double()
        whole = [side * own + bias.double() for side, bias in zip(whole, biases, strict=True)]
    q, k, v = (each.unflatten(-1, (heads, size)).transpose(1, 2) for each in whole)
    scores = (q @ k.mT * 0.3).masked_fill(~there[:, None, None], -torch.inf)
    expected = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    mask = there if masked else None
    out, levels, scales = attend_rows(*sides, biases, None if scaled else factors, mask, 0.3, heads)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    check_rounded(levels, scales, out.flatten(0, 1))
    if scaled:
        assert torch.equal(attend(*sides, mask, 0.3, heads), out)


def test_no_bit_of_a_sequence_depends_on_its_padding_or_on_others() -> None:
    sides, biases, factors = some_sides(3, 21, 48)
    there = torch.arange(21).expand(3, 21) < torch.tensor([[21], [9], [17]])
    out = attend_rows(*sides, biases, factors, there, 0.2, 4)[0]
    for number, length in enumerate((21, 9, 17)):
        alone = [side[number : number + 1, :length].contiguous() for side in sides]
        own = factors.view(3, 21)[number, :length, None].contiguous()
        assert torch.equal(attend_rows(*alone, biases, own, None, 0.2, 4)[0][0], out[number, :length])


def test_what_is_not_finite_stays_so() -> None:
    sides, biases, factors = some_sides(2, 6, 32)
    sides[0][1, 2, 3] = torch.nan
    out = attend_rows(*sides, biases, factors, None, 0.2, 2)[0]
    assert out[1, 2, :16].isnan().all()
    assert out[0].isfinite().all()


def test_scores_of_any_size_have_a_softmax() -> None:
    """Whose largest is taken off first: no power overflows, and one key may have all the weight."""
    query = torch.full((1, 3, 16), 100.0)
    key = torch.stack([torch.full((16,), value) for value in (-100.0, 0.0, 100.0)])[None]
    value = torch.arange(3.0)[None, :, None].expand(1, 3, 16).contiguous()
    out = attend_rows(query, key, value, [torch.zeros(16)] * 3, None, None, 1.0, 1)[0]
    torch.testing.assert_close(out, torch.full((1, 3, 16), 2.0))
