"""One pass over memory gives what torch's several give."""

import os
import sys
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from distill import int8_rows
from distill.compiler import compiler
from distill.int8_rows import attend, attend_rows, gelu_rows, library, norm_rows_, round_rows, scale_rows_

SHAPES = [(1, 1), (3, 16), (7, 33), (600, 48), (65, 768)]


def restored(levels: Tensor, factors: Tensor) -> Tensor:
    """The numbers that levels stand for: what a product of theirs with a weight of 1 is scaled to."""
    factor, rest = factors.double().unbind(1)
    return (levels.double() - 128) * factor[:, None] + rest[:, None]


def check_rounded(levels: Tensor, factors: Tensor, expected: Tensor) -> None:
    """Levels are those nearest to the expected rows, of which zero is one; they span the row."""
    exact = expected.double()
    span = exact.amax(1).clamp_min(0) - exact.amin(1).clamp_max(0)
    step = factors[:, 0].double()
    torch.testing.assert_close(step * 254, span, rtol=1e-5, atol=4e-6)
    zero = 128 - factors[:, 1].double() / step
    assert ((zero - zero.round()).abs() < 1e-4).all()  # a level of its own: zeros stay zeros
    error = (restored(levels, factors) - exact).abs()
    assert (error <= 0.5001 * step[:, None] + 2e-6).all()


def scaled(products: Tensor, factors: Tensor, sums: Tensor, bias: Tensor) -> Tensor:
    """What products stand for, in float64."""
    factor, rest = factors.double().unbind(1)
    return products.double() * factor[:, None] + rest[:, None] * sums.double() + bias.double()


def some_scales(shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of the rows, sums of the weights, and a bias."""
    return torch.rand(shape[0], 2), torch.randn(shape[1]), torch.randn(shape[1])


def some(shape: tuple[int, int]) -> Tensor:
    torch.manual_seed(shape[0])
    return torch.randn(shape) * torch.rand(shape[0], 1) * 30


def test_a_folder_that_stays_is_no_mistake(monkeypatch, tmp_path) -> None:
    """On NFS what is loaded stays in its folder, under another name, until the process ends."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with mock.patch.object(os, "rmdir", side_effect=OSError("Directory not empty")):
        assert int8_rows._compiled(compiler()).round_rows


def test_ctrl_c_does_not_reach_the_compiler(tmp_path) -> None:
    """A terminal interrupts all processes of its session's foreground."""
    script, session = tmp_path / "compiler.py", tmp_path / "session"
    script.write_text(
        f"import os, sys; open({str(session)!r}, 'w').write(str(os.getsid(0))); "
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    assert int8_rows._compiled([sys.executable, str(script), *compiler()]).round_rows
    assert int(session.read_text()) != os.getsid(0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_rounded_to_their_nearest_level(shape: tuple[int, int]) -> None:
    rows = some(shape)
    rows[0] *= 1e6
    check_rounded(*round_rows(rows), rows)
    check_rounded(*round_rows(rows.mT.contiguous().mT), rows)  # of another stride


def test_rows_of_zeros_and_of_tiny_numbers_are_levels_too() -> None:
    rows = torch.tensor([[0.0, -0.0], [1e-42, -1e-42]])
    levels, factors = round_rows(rows)
    assert levels.tolist() == [[0, 0], [0, 0]]
    assert (restored(levels, factors) == 0).all()
    assert (factors > 0).all()
    assert factors.isfinite().all()


def test_rows_of_one_sign_have_all_levels() -> None:
    rows = torch.rand(40, 500) + torch.tensor([[0.0], [3.0]]).repeat(20, 1)
    for each in (rows, -rows):
        levels, factors = round_rows(each)
        check_rounded(levels, factors, each)
        assert levels.amax() >= 254
        assert levels.amin() <= 1
        assert (factors[:, 0] * 254 <= each.abs().amax(1) * 1.00001).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_scaled_in_place(shape: tuple[int, int]) -> None:
    rows, scales = some(shape), some_scales(shape)
    expected = scaled(rows, *scales)
    got = scale_rows_(rows, *scales)
    assert got is rows
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gelu_is_the_one_with_erf(shape: tuple[int, int]) -> None:
    rows, scales = some(shape), some_scales(shape)
    check_rounded(*gelu_rows(rows, *scales), nn.functional.gelu(scaled(rows, *scales)))


def test_gelu_over_all_of_its_range() -> None:
    points = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e30, -100.0, 1e-30, -1e-30, 0.0])])
    one, none = torch.tensor([[1.0, 0.0]]).repeat(len(points), 1), torch.zeros(1)
    rounded = gelu_rows(points[:, None].contiguous(), one, none, none)  # rows of one: no rounding
    got, expected = restored(*rounded)[:, 0], nn.functional.gelu(points.double())
    assert (got - expected).abs().max() < 2e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_norm_is_that_of_the_scaled_sum(shape: tuple[int, int]) -> None:
    rows, scales = some(shape), some_scales(shape)
    residual = some(shape).flip(0)
    norm = nn.LayerNorm(shape[1], eps=1e-5).requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    expected = norm.double()(scaled(rows, *scales) + residual.double())
    rounded = norm_rows_(rows, *scales, residual, norm.float())
    torch.testing.assert_close(rows.double(), expected, rtol=1e-4, atol=1e-4)
    check_rounded(*rounded, rows)


def test_what_is_not_finite_is_not_hidden() -> None:
    rows = torch.ones(2, 8)
    rows[1, 3] = torch.nan
    norm = nn.LayerNorm(8).requires_grad_(False)
    one, none = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.zeros(8)
    norm_rows_(rows, one, none, none, torch.zeros(2, 8), norm)
    assert rows[0].isfinite().all()
    assert rows[1].isnan().all()
    rows[0, 5] = torch.inf
    for _, factors in (round_rows(rows), gelu_rows(rows, one, none, none)):
        assert factors.isnan().all()


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    library.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"false can't compile int8_rows\.cpp"):
            round_rows(torch.ones(1, 1))
    finally:
        library.cache_clear()


ATTENTION = [(1, 1, 1, 1), (1, 112, 1, 64), (2, 5, 2, 16), (3, 37, 5, 26), (2, 130, 3, 64), (4, 16, 12, 32)]


class Sides(NamedTuple):
    """Queries, keys and values still to be scaled, the sums of their weights, their biases, and factors."""

    products: list[Tensor]
    sums: list[Tensor]
    biases: list[Tensor]
    factors: Tensor

    def scaled(self) -> list[Tensor]:
        """The three as they are, in float64."""
        return [
            scaled(each.flatten(0, 1), self.factors, total, bias).view(each.shape)
            for each, total, bias in zip(self.products, self.sums, self.biases, strict=True)
        ]


def some_sides(sequences: int, length: int, width: int) -> Sides:
    torch.manual_seed(length)
    products, sums, biases = (
        [torch.randn(shape) for _ in range(3)] for shape in ((sequences, length, width), width, width)
    )
    return Sides(products, sums, biases, torch.rand(sequences * length, 2))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", ATTENTION, ids=str)
def test_attention_is_the_formula(shape: tuple[int, int, int, int], masked: bool) -> None:
    sequences, length, heads, size = shape
    sides = some_sides(sequences, length, heads * size)
    there = torch.rand(sequences, length) > 0.4 * masked
    there[:, length // 2] = True
    mask = there if masked else None

    def formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (
            each.double().unflatten(-1, (heads, size)).transpose(1, 2) for each in (query, key, value)
        )
        scores = (q @ k.mT * 0.3).masked_fill(~there[:, None, None], -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    out, *rounded = attend_rows(*sides.products, *sides[1:], mask, 0.3, heads)
    torch.testing.assert_close(out.double(), formula(*sides.scaled()), rtol=1e-5, atol=1e-5)
    check_rounded(*rounded, out.flatten(0, 1))
    plain = attend(*sides.products, mask, 0.3, heads)
    torch.testing.assert_close(plain.double(), formula(*sides.products), rtol=1e-5, atol=1e-5)


def test_no_bit_of_a_sequence_depends_on_its_padding_or_on_others() -> None:
    sides = some_sides(3, 21, 48)
    there = torch.arange(21).expand(3, 21) < torch.tensor([[21], [9], [17]])
    out = attend_rows(*sides.products, *sides[1:], there, 0.2, 4)[0]
    for number, length in enumerate((21, 9, 17)):
        alone = [side[number : number + 1, :length].contiguous() for side in sides.products]
        own = sides.factors.view(3, 21, 2)[number, :length].contiguous()
        again = attend_rows(*alone, sides.sums, sides.biases, own, None, 0.2, 4)[0]
        assert torch.equal(again[0], out[number, :length])


def test_what_is_not_finite_stays_so() -> None:
    sides = some_sides(2, 6, 32)
    sides.products[0][1, 2, 3] = torch.nan
    out = attend_rows(*sides.products, *sides[1:], None, 0.2, 2)[0]
    assert out[1, 2, :16].isnan().all()
    assert out[0].isfinite().all()
    for side in (1, 2):
        products = [torch.randn(2, 6, 32) for _ in range(3)]
        products[side][1, 2, 3] = torch.nan
        out = attend(*products, None, 0.2, 2)
        assert out[1, :, 3].isnan().all()
        assert out[0].isfinite().all()


def test_a_sequence_without_keys_is_zeros() -> None:
    out = attend(
        *(torch.randn(2, 5, 16) for _ in range(3)), torch.tensor([[True] * 5, [False] * 5]), 0.2, 2
    )
    assert (out[1] == 0).all()
    assert out[0].isfinite().all()


def test_scores_of_any_size_have_a_softmax() -> None:
    """Whose largest is taken off first: no power overflows, and one key may have all the weight."""
    query = torch.full((1, 3, 16), 100.0)
    key = torch.stack([torch.full((16,), value) for value in (-100.0, 0.0, 100.0)])[None]
    value = torch.arange(3.0)[None, :, None].expand(1, 3, 16).contiguous()
    out = attend(query, key, value, None, 1.0, 1)
    torch.testing.assert_close(out, torch.full((1, 3, 16), 2.0))
