"""8-bit products of a frozen teacher, against the formula and against fp32."""

import pytest
import torch
from torch import Tensor, nn

from distill.accounting import forward_cost, matrix_ceiling
from distill.encoders import Batch, Teacher, run_encoder
from distill.int8 import LEVELS, WORTH, Int8Linear, Rounding, check_int8, quantise, round_rows
from distill.settings import TeacherConfig

CPU = torch.device("cpu")
vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs a CPU with AVX-512 VNNI")


def formula(linear: nn.Linear, inputs: Tensor) -> Tensor:
    """The same in float64: both sides rounded to their levels, then multiplied."""

    def round_rows(rows: Tensor) -> Tensor:
        scale = rows.abs().amax(-1, keepdim=True).clamp_min(1e-30) / LEVELS
        return torch.floor(rows / scale + 0.5) * scale

    product = round_rows(inputs.double()) @ round_rows(linear.weight.double()).T
    return product if linear.bias is None else product + linear.bias.double()


@vnni
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 48), (3, 7, 48), (600, 48)], ids=str)
def test_the_product_is_the_formula(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 20, bias=bias)
    inputs = torch.randn(shape) * torch.rand(shape[:-1])[..., None] * 100
    with torch.no_grad():
        got = Int8Linear(linear, Rounding())(inputs)
        expected = formula(linear, inputs)
        exact = linear(inputs)
    assert got.shape == exact.shape
    assert got.dtype == torch.float32
    # A value that lies between two levels may go either way in another precision.
    assert (got - expected).abs().max() < 0.02 * exact.abs().max()
    assert (got - expected).norm() < 1e-3 * expected.norm()
    assert 1e-4 * exact.norm() < (got - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("width", [96, 768])
def test_one_pass_rounds_as_several_do(width: int) -> None:
    torch.manual_seed(0)
    rows = torch.randn(WORTH // width + 3, width) * torch.rand(WORTH // width + 3, 1) * 100
    rows[5], rows[6] = 0, rows[6] * 1e6
    rounded, scale = Rounding()(rows)  # large enough for the compiled form
    assert rounded.dtype == torch.uint8
    for got, expected in zip((rounded, scale), round_rows(rows), strict=True):
        assert torch.equal(got, expected)


@vnni
def test_rows_of_zeros_give_the_bias() -> None:
    linear = nn.Linear(16, 8)
    with torch.no_grad():
        got = Int8Linear(linear, Rounding())(torch.zeros(2, 16))
    torch.testing.assert_close(got, linear.bias.detach().expand(2, 8))


@vnni
def test_a_token_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(32, 24), Rounding())
    inputs = torch.randn(9, 32)
    inputs[4] *= 1e4
    with torch.no_grad():
        whole = layer(inputs)
        alone = torch.cat([layer(row[None]) for row in inputs])
    assert torch.equal(whole, alone)


@vnni
def test_inputs_changed_in_place_are_rounded_anew() -> None:
    torch.manual_seed(0)
    rounding = Rounding()
    first, second = (Int8Linear(nn.Linear(16, 8), rounding) for _ in range(2))
    inputs = torch.randn(4, 16)
    with torch.no_grad():
        first(inputs)
        inputs.mul_(3)
        again = second(inputs)
        assert torch.equal(again, second(inputs.clone()))


@vnni
def test_a_teacher_in_int8_gives_nearly_the_same_signal_at_the_same_cost(tiny_model: str) -> None:
    torch.manual_seed(0)
    ids = torch.randint(5, 90, (4, 12))
    batch = Batch(ids, torch.ones_like(ids), torch.zeros_like(ids))
    plain, fast = (
        Teacher(TeacherConfig(str(tiny_model), precision=p), CPU, layers=4) for p in ("fp32", "int8")
    )
    kinds = [type(module) for module in fast.model.modules()]
    assert nn.Linear not in kinds
    assert kinds.count(Int8Linear) == 4 * 6
    layers = range(plain.model.config.num_hidden_layers + 1)
    expected, got = (t.signal(batch, layers, layers[1:]) for t in (plain, fast))
    for layer in layers[1:]:
        assert (got.hidden[layer] - expected.hidden[layer]).norm() < 0.05 * expected.hidden[layer].norm()
        for a, b in zip(got.attention[layer][:2], expected.attention[layer][:2], strict=True):
            assert 0 < (a - b).norm() < 0.05 * b.norm()

    def cost(teacher: Teacher) -> object:
        return forward_cost(lambda b: run_encoder(teacher.model, teacher.collector, b, layers, ()), CPU)

    assert cost(fast) == cost(plain)


@vnni
def test_the_ceiling_of_int8_products_is_measured() -> None:
    assert matrix_ceiling(CPU, torch.int8) > 1e9


def test_int8_on_a_gpu_is_refused(tiny_model: str) -> None:
    with pytest.raises(ValueError, match=r"teacher\.precision: int8 is for CPUs; give bf16 or auto"):
        Teacher(TeacherConfig(str(tiny_model), precision="int8"), torch.device("cuda"))


def test_int8_without_vnni_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ValueError, match="needs a CPU with AVX-512 VNNI"):
        check_int8(CPU)


@vnni
def test_only_linear_layers_are_replaced() -> None:
    class Narrow(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), Narrow(8, 8))
    quantise(model)
    assert [type(module) for module in model] == [Int8Linear, nn.LayerNorm, Narrow]
