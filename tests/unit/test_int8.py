"""8-bit products of a frozen teacher, against the formula and against fp32."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    ElectraConfig,
    RobertaConfig,
)

from distill.accounting import forward_cost, matrix_ceiling
from distill.encoders import Batch, Teacher, precision_of, run_encoder
from distill.int8 import (
    LEVELS,
    Int8Intermediate,
    Int8Linear,
    Int8Output,
    Int8SelfAttention,
    Rounding,
    check_int8,
    quantise,
)
from distill.int8_rows import library
from distill.nezha import NezhaConfig
from distill.settings import TeacherConfig

CPU = torch.device("cpu")
vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs a CPU with AVX-512 VNNI")


def formula(linear: nn.Linear, inputs: Tensor) -> Tensor:
    """The same in float64: both sides rounded to their levels, then multiplied."""

    rows, weight = inputs.double(), linear.weight.double()
    low, high = rows.amin(-1, keepdim=True).clamp_max(0), rows.amax(-1, keepdim=True).clamp_min(0)
    step = (high - low).clamp_min(1e-30) / 254
    zero = torch.floor(0.5 - low / step)
    rows = (torch.floor(rows / step + zero + 0.5) - zero) * step
    scale = weight.abs().amax(-1, keepdim=True) / LEVELS
    product = rows @ (torch.round(weight / scale) * scale).T
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
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    batch, short = (
        Batch(i, m, torch.zeros_like(i)) for i, m in ((ids, mask), (ids[1:2, :7], mask[1:2, :7]))
    )
    plain, fast = (
        Teacher(TeacherConfig(str(tiny_model), precision=p), CPU, layers=4) for p in ("fp32", "int8")
    )
    kinds = [type(module) for module in fast.model.modules()]
    assert nn.Linear not in kinds
    assert kinds.count(Int8Linear) == 4 * 6
    assert kinds.count(Int8SelfAttention) == 4
    assert kinds.count(Int8Intermediate) == 4
    assert kinds.count(Int8Output) == 4 * 2
    layers = range(plain.model.config.num_hidden_layers + 1)
    expected, got = (t.signal(batch, layers, layers[1:]) for t in (plain, fast))
    cut = fast.signal(short, layers)
    for layer in layers[1:]:
        exact = expected.hidden[layer] * mask[..., None]
        assert (got.hidden[layer] * mask[..., None] - exact).norm() < 0.05 * exact.norm()
        assert torch.equal(cut.hidden[layer][0], got.hidden[layer][1, :7])  # padding changes no bit
        for a, b in zip(got.attention[layer][:2], expected.attention[layer][:2], strict=True):
            assert 0 < (a - b).norm() < 0.05 * b.norm()

    def cost(teacher: Teacher) -> object:
        return forward_cost(lambda b: run_encoder(teacher.model, teacher.collector, b, layers, ()), CPU)

    assert cost(fast) == cost(plain)


@vnni
@pytest.mark.parametrize("family", [BertConfig, RobertaConfig, ElectraConfig, NezhaConfig, DebertaV2Config])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_fused_layers_give_what_their_parts_give(family: type, activation: str) -> None:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96}
    config = family(vocab_size=90, hidden_act=activation, type_vocab_size=2, pad_token_id=0, **shape)
    exact = AutoModel.from_config(config, attn_implementation="eager").eval()
    for name, weight in exact.named_parameters():  # first biases and norms hide what is left out
        if name.endswith("bias") or "LayerNorm" in name:
            nn.init.normal_(weight, mean=float(name.endswith("Norm.weight")), std=0.5)
    fused, parts = copy.deepcopy(exact), copy.deepcopy(exact)
    quantise(fused)
    rounding = Rounding()
    for parent in list(parts.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child, rounding))
    kinds = {type(module) for module in fused.modules()}
    known = family is not DebertaV2Config
    assert (Int8Output in kinds) == known
    assert (Int8SelfAttention in kinds) == (known and family is not NezhaConfig)  # relative positions
    assert (Int8Intermediate in kinds) == (known and activation == "gelu")
    ids = torch.randint(5, 90, (4, 12))
    with torch.no_grad():
        got, expected, plain = (model(ids)[0] for model in (fused, parts, exact))
    # What lies between two levels may go either way.
    assert (got - expected).norm() < 0.2 * (expected - plain).norm()


@vnni
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_a_batch_without_a_masked_token_has_no_logits(activation: str, tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=60, hidden_act=activation, **shape)).save_pretrained(tmp_path)
    teacher = Teacher(TeacherConfig(str(tmp_path), precision="int8"), CPU, head=AutoModelForMaskedLM)
    ids = torch.full((2, 3), 7)
    none = torch.zeros(0, dtype=torch.long)
    batch = Batch(ids, torch.ones_like(ids), torch.zeros_like(ids), masked=none)
    assert teacher.signal(batch).logits.shape == (0, 60)


@vnni
def test_a_fused_teacher_keeps_its_dropout(tiny_model: str) -> None:
    config = TeacherConfig(str(tiny_model), precision="int8", dropout=True)
    teacher = Teacher(config, CPU, layers=4)
    for module in teacher.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    ids = torch.randint(5, 90, (4, 12))
    batch = Batch(ids, torch.ones_like(ids), torch.zeros_like(ids))
    first, second = (teacher.signal(batch, [4]).hidden[4] for _ in range(2))
    assert not torch.equal(first, second)


@vnni
def test_the_ceiling_of_int8_products_is_measured() -> None:
    assert matrix_ceiling(CPU, torch.int8) > 1e9


def test_int8_on_a_gpu_is_refused(tiny_model: str) -> None:
    with pytest.raises(ValueError, match=r"teacher\.precision: int8 is for CPUs; leave it out"):
        Teacher(TeacherConfig(str(tiny_model), precision="int8"), torch.device("cuda"), layers=1)


def test_int8_without_vnni_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ValueError, match=r"needs a CPU with AVX-512 VNNI .*; leave it out"):
        check_int8(CPU)


def test_int8_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    library.cache_clear()
    with pytest.raises(
        ValueError, match=r"int8: no C\+\+ compiler, by \$CXX or as c\+\+: apt install g\+\+; or"
    ):
        check_int8(CPU)
    assert precision_of("auto", CPU) != torch.int8


@vnni
def test_only_linear_layers_are_replaced() -> None:
    class Narrow(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), Narrow(8, 8))
    quantise(model)
    assert [type(module) for module in model] == [Int8Linear, nn.LayerNorm, Narrow]
