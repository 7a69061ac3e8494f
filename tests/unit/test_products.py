"""fp32 products by oneDNN: the formula in float64, forward and gradients, and the switch put back."""

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from distill import products
from distill.accounting import count_flops
from distill.attention import Heads
from distill.fused import choices
from distill.losses import attention_score_loss
from distill.products import SWITCH, FastLinear, by_onednn, fast_products, speed_up_products
from distill.projection import HiddenProjection
from distill.relations import relation_loss

EXACT = pytest.mark.skipif(not products.is_exact(), reason="oneDNN rounds to bf16 here (AMX)")


@pytest.fixture(params=[True, False], ids=["oneDNN", "as torch chooses"])
def either(request, monkeypatch):
    """Whether the faster way is taken, whatever this machine is."""
    monkeypatch.setattr(products, "by_onednn", lambda: request.param)
    return request.param


def gradients(layer: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    inputs = inputs.clone().requires_grad_()
    return list(torch.autograd.grad(layer(inputs).sin().sum(), [inputs, *layer.parameters()]))


@EXACT
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(70,), (5, 70), (64, 70), (3, 41, 70), (0, 70)], ids=str)
def test_values_and_gradients_are_those_of_float64(either, shape, bias):
    torch.manual_seed(0)
    layer, inputs = nn.Linear(70, 33, bias=bias), torch.randn(shape)
    double = nn.Linear(70, 33, bias=bias).double()
    double.load_state_dict(layer.state_dict())
    speed_up_products(layer)
    assert isinstance(layer, FastLinear) is either
    torch.testing.assert_close(layer(inputs), double(inputs.double()).float(), rtol=1e-5, atol=1e-5)
    wanted = gradients(double, inputs.double())
    for one, other in zip(gradients(layer, inputs), wanted, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-4)


ROWS = pytest.mark.parametrize("rows", [3, products.BLOCK + 6])  # torch's own way, and oneDNN's


@ROWS
def test_what_is_frozen_gets_no_gradient(monkeypatch, rows):
    monkeypatch.setattr(products, "by_onednn", lambda: True)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    speed_up_products(model)
    model[0].requires_grad_(False)
    model(torch.randn(rows, 4)).sum().backward()
    assert model[0].weight.grad is None
    assert model[1].weight.grad is not None


@pytest.mark.parametrize(("rows", "ours"), [(3, False), (products.BLOCK, True)])
def test_few_rows_go_torchs_own_way(monkeypatch, rows, ours):
    monkeypatch.setattr(products, "by_onednn", lambda: True)
    layer = nn.Linear(4, 6)
    speed_up_products(layer)
    assert ("_Product" in layer(torch.randn(rows, 4)).grad_fn.name()) is ours


@EXACT
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(70,), (5, 70), (64, 70), (3, 41, 70), (0, 70)], ids=str)
def test_a_frozen_weight_is_laid_out_once(monkeypatch, shape, bias):
    monkeypatch.setattr(products, "by_onednn", lambda: True)
    torch.manual_seed(0)
    layer, inputs = nn.Linear(70, 33, bias=bias).requires_grad_(False), torch.randn(shape)
    plain = copy.deepcopy(layer)
    speed_up_products(layer)
    torch.testing.assert_close(layer(inputs), plain(inputs), rtol=1e-5, atol=1e-5)
    layout = layer.packed(layer.weight)
    assert layer.packed(layer.weight) is layout
    assert pickle.loads(pickle.dumps(layer)).weight.equal(layer.weight)
    torch.testing.assert_close(copy.deepcopy(layer)(inputs), plain(inputs), rtol=1e-5, atol=1e-5)
    layer.weight.mul_(2)  # as when other weights are loaded
    torch.testing.assert_close(
        layer(inputs), nn.functional.linear(inputs, 2 * plain.weight, plain.bias), rtol=1e-5, atol=1e-5
    )


def test_onednn_sees_few_numbers_of_rows(monkeypatch):
    """It keeps what it makes for each: of texts of all lengths a gigabyte, and more with every step."""
    seen: set[int] = set()
    kept = torch.ops.mkldnn._linear_pointwise

    @contextmanager
    def watched():
        with Seen(seen):
            yield

    monkeypatch.setattr(products, "by_onednn", lambda: True)
    monkeypatch.setattr(products, "fast_products", watched)
    layer, frozen = nn.Linear(7, 3), nn.Linear(7, 3).requires_grad_(False)
    for each in (layer, frozen):
        speed_up_products(each)
    for rows in range(60, 400, 3):
        layer(torch.randn(rows, 7)).sum().backward()
    assert {count for count in seen if count > 7} == {64, 128, 192, 256, 320, 384}
    packed: set[int] = set()
    monkeypatch.setattr(
        torch.ops.mkldnn,
        "_linear_pointwise",
        lambda rows, *given: packed.add(len(rows)) or kept(rows, *given),
    )
    for rows in range(65, 400, 3):
        assert frozen(torch.randn(rows, 7)).shape == (rows, 3)
    assert packed == set(range(96, 417, 32))


class Seen(TorchDispatchMode):
    """Notes how many rows products have."""

    def __init__(self, seen: set[int]):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.seen.add(max(args[-2].shape))  # of rows, and of what is summed for a weight's gradient
        return func(*args, **(kwargs or {}))


@ROWS
def test_gradients_pass_through_what_is_frozen(monkeypatch, rows):
    monkeypatch.setattr(products, "by_onednn", lambda: True)
    layer, inputs = nn.Linear(4, 3).requires_grad_(False), torch.randn(rows, 4, requires_grad=True)
    speed_up_products(layer)
    layer(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, layer.weight.sum(dim=0).expand(rows, 4))


@ROWS
def test_a_bias_alone_learns(monkeypatch, rows):
    monkeypatch.setattr(products, "by_onednn", lambda: True)
    layer, plain = nn.Linear(4, 3), nn.Linear(4, 3)
    for each in (layer, plain):
        each.weight.requires_grad_(False)
    speed_up_products(layer)
    layer(torch.ones(rows, 4)).sum().backward()
    assert layer.bias.grad.tolist() == [float(rows)] * 3


def test_another_weight_at_the_same_address_is_seen(monkeypatch):
    monkeypatch.setattr(products, "by_onednn", lambda: True)
    layer, inputs = FastLinear(8, 4).requires_grad_(False), torch.randn(3, 8)
    for number in range(20):
        layer(inputs)
        layer.weight = None
        layer.weight = nn.Parameter(torch.full((4, 8), float(number)), requires_grad=False)
        expected = nn.functional.linear(inputs, layer.weight, layer.bias)
        torch.testing.assert_close(layer(inputs), expected)


@pytest.mark.parametrize("case", ["autocast", "inference", "wrong width", "double"])
def test_what_is_not_plain_goes_torchs_way(monkeypatch, case):
    monkeypatch.setattr(products, "by_onednn", lambda: True)
    with torch.inference_mode(case == "inference"):
        plain = nn.Linear(8, 4)
        layer = copy.deepcopy(plain)
    speed_up_products(layer)
    inputs = torch.randn(3, 9 if case == "wrong width" else 8)
    for each in (plain, layer):
        each.requires_grad_(False) if case != "inference" else None
    if case in ("wrong width", "double"):
        with pytest.raises(RuntimeError, match=r"shapes|dtype"):
            layer(inputs.double() if case == "double" else inputs)
        return
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert torch.equal(layer(inputs), plain(inputs))


@EXACT
@pytest.mark.parametrize("term", ["attention", "relation", "projection"])
def test_the_losses_ask_onednn_for_few_shapes(monkeypatch, term):
    monkeypatch.setattr(products, "by_onednn", lambda: True)
    seen: set[tuple[int, ...]] = set()

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if SWITCH.fp32_precision == "bf16" and func.overloadpacket in PRODUCTS:
                seen.add(tuple(size for tensor in args for size in getattr(tensor, "shape", ())))
            return func(*args, **(kwargs or {}))

    projection = HiddenProjection(8, 12, 0.1)
    with Shapes():
        for length in range(2, 400):
            mask = torch.ones(1, length)
            if term == "projection":
                projection(torch.randn(1, length, 8), torch.randn(1, length, 12), mask).backward()
                continue
            own, other = (
                Heads(*(torch.randn(1, 2, length, size, requires_grad=True) for _ in range(3)), 0.5)
                for size in (4, 8)
            )
            if term == "attention":
                attention_score_loss(own, other, mask, mask).backward()
            else:
                relation_loss(own, other, "vv", 0, mask, mask).backward()
    assert 0 < len(seen) < 110


PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_, torch.ops.aten.bmm)


def test_products_of_laid_out_weights_are_counted(monkeypatch):
    monkeypatch.setattr(products, "by_onednn", lambda: True)
    layer = nn.Linear(70, 33).requires_grad_(False)
    speed_up_products(layer)
    assert count_flops(lambda: layer(torch.randn(3, 5, 70))) == 2 * 3 * 5 * 70 * 33


def test_names_weights_and_other_kinds_stay(monkeypatch):
    monkeypatch.setattr(products, "by_onednn", lambda: True)

    class Own(nn.Linear):
        """A layer of a user's."""

    model = nn.Sequential(nn.Linear(4, 6), Own(6, 2))
    before = dict(model.named_parameters())
    speed_up_products(model)
    assert [type(layer) for layer in model] == [FastLinear, Own]
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_other_dtypes_go_the_plain_way(monkeypatch):
    monkeypatch.setattr(products, "by_onednn", lambda: True)
    layer, inputs = nn.Linear(8, 3).bfloat16(), torch.randn(products.BLOCK, 8).bfloat16()
    expected = layer(inputs)
    speed_up_products(layer)
    assert torch.equal(layer(inputs), expected)


def test_the_switch_is_on_inside_alone_and_put_back(either):
    before = SWITCH.fp32_precision
    with fast_products():
        assert (SWITCH.fp32_precision == "bf16") is (either or before == "bf16")
    assert SWITCH.fp32_precision == before


def test_the_switch_is_put_back_after_an_error(monkeypatch):
    monkeypatch.setattr(products, "by_onednn", lambda: True)
    layer, before = FastLinear(4, 3), SWITCH.fp32_precision
    with pytest.raises(RuntimeError, match="shapes"):
        layer(torch.randn(2, 5))
    assert SWITCH.fp32_precision == before


@pytest.mark.parametrize("change", ["Intel", "no AVX-512", "rounds", "no file"])
def test_the_faster_way_is_taken_only_where_all_holds(monkeypatch, tmp_path, change):
    cpuinfo = tmp_path / "cpuinfo"
    if change != "no file":
        cpuinfo.write_text("vendor_id\t: " + ("GenuineIntel" if change == "Intel" else "AuthenticAMD"))
    monkeypatch.setattr(products, "CPUINFO", cpuinfo)
    monkeypatch.setattr(products, "is_exact", lambda: change != "rounds")
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: change != "no AVX-512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert not by_onednn.__wrapped__()
    cpuinfo.write_text("vendor_id\t: AuthenticAMD")
    monkeypatch.setattr(products, "is_exact", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
    assert by_onednn.__wrapped__()


def test_doctor_says_which_way_is_taken():
    chosen = {choice.part: choice.chosen for choice in choices()}
    assert chosen["fp32 products on the CPU"] == ("oneDNN" if by_onednn() else "as torch chooses")
