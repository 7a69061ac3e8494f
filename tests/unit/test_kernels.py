"""Triton kernels against their plain twins and the formulas in float64: on a GPU, else interpreted.

Outputs are poisoned first (`torch.utils.deterministic.fill_uninitialized_memory` fills what `empty`
gives), so that a number which no program wrote shows.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill import relation_kernels, score_kernel, tiles
from distill.losses import PlainScoreError
from distill.relation_kernels import RelationDivergence
from distill.relations import PlainRelationDivergence
from distill.score_kernel import ScoreError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []
# student's head size, teacher's, length: tiles of 64 rows, sizes of no power of two among them
SHAPES = [(26, 64, 70), (32, 32, 1), (8, 128, 17)]
MORE_SHAPES = [(24, 32, 64), (64, 24, 130)]
KINDS = {"score": (ScoreError, PlainScoreError)}
KINDS["relation"] = (RelationDivergence, PlainRelationDivergence)
SCALES = (0.3, 0.2)


@pytest.fixture(autouse=True)
def poisoned_memory():
    torch.use_deterministic_algorithms(True)  # fills what `empty` returns with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=SHAPES, ids=str)
def case(request) -> list[Tensor]:
    """Student's two sides, the teacher's two, the mask of rows, that of columns."""
    return some_sides(*request.param)


def some_sides(size: int, other_size: int, length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    # As models make them: heads lie inside a token's row.
    parts = [torch.randn(2, length, 2, s, generator=generator) for s in [size] * 2 + [other_size] * 2]
    masks = [torch.rand(2, length, generator=generator) < 0.7 for _ in range(2)]
    masks[1][:, 0] = True  # a row sees one key at least
    found = [part.transpose(1, 2).to(DEVICE) for part in parts] + [mask.long().to(DEVICE) for mask in masks]
    for part in found[:2]:
        part.requires_grad_()
    return found


def formula(kind: str, case: list[Tensor]) -> Tensor:
    """The loss with whole score matrices, in float64."""
    left, right, other_left, other_right, rows, columns = (part.double() for part in case)
    own, other = SCALES[0] * left @ right.mT, SCALES[1] * other_left @ other_right.mT
    rows, columns = rows[:, None, :, None], columns[:, None, None, :]
    if kind == "score":
        return ((own - other) * rows * columns).square().sum()
    own, other = (scores.masked_fill(columns == 0, -1e300).log_softmax(-1) for scores in (own, other))
    return (other.exp() * (other - own) * rows * columns).sum()


def gradients(loss: Tensor, case: list[Tensor]) -> list[Tensor]:
    return [gradient.double() for gradient in torch.autograd.grad(loss, case[:2])]


def assert_near(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= tolerance * other.norm() + 1e-30


def narrow(case: list[Tensor], dtypes: tuple[torch.dtype, torch.dtype]) -> list[Tensor]:
    own, other = (
        [part.detach().to(kind) for part in parts]
        for parts, kind in zip((case[:2], case[2:4]), dtypes, strict=True)
    )
    return [*(part.requires_grad_() for part in own), *other, *case[4:]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES + MORE_SHAPES, ids=str)
def test_kernel_twin_and_formula_agree(kind, shape):
    case, (fused, plain) = some_sides(*shape), KINDS[kind]
    expected = formula(kind, case)
    wanted = gradients(expected, case)
    for function in (fused, plain):
        loss = function.apply(*case, *SCALES)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
        assert_near(gradients(loss, case), wanted, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "dtypes",
    [(torch.bfloat16,) * 2, (torch.float16,) * 2, (torch.float32, torch.bfloat16)],
    ids=["bf16", "fp16", "fp32 and bf16"],
)
def test_narrow_inputs_are_summed_in_fp32(kind, dtypes, case):
    fused, _ = KINDS[kind]
    case = narrow(case, dtypes)
    loss, expected = fused.apply(*case, *SCALES), formula(kind, case)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    found = torch.autograd.grad(loss, case[:2])
    assert all(part.dtype == dtypes[0] for part in found)
    tolerance = max(1e-5, 2 * torch.finfo(dtypes[0]).eps)
    assert_near([part.double() for part in found], gradients(expected, case), tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_masks_hide_is_never_read(kind, case):
    fused, _ = KINDS[kind]
    clean = fused.apply(*case, *SCALES)
    hidden = [mask[:, None, :, None] == 0 for mask in (case[4], case[5])]
    poisoned = [
        part.detach().masked_fill(hidden[index % 2], float("nan")) for index, part in enumerate(case[:4])
    ]
    for part in poisoned[:2]:
        part.requires_grad_()
    other = fused.apply(*poisoned, *case[4:], *SCALES)
    assert torch.equal(clean, other)
    for one, two in zip(gradients(clean, case), gradients(other, poisoned), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind, case):
    fused, _ = KINDS[kind]
    wider = [torch.nn.functional.pad(part.detach(), (0, 0, 0, 9)) for part in case[:4]]
    wider = [*(part.requires_grad_() for part in wider[:2]), *wider[2:]]
    masks = [torch.nn.functional.pad(mask, (0, 9)) for mask in case[4:]]
    clean, padded = fused.apply(*case, *SCALES), fused.apply(*wider, *masks, *SCALES)
    torch.testing.assert_close(padded, clean, rtol=1e-6, atol=1e-6)
    length = case[0].shape[2]
    for one, two in zip(gradients(padded, wider), gradients(clean, case), strict=True):
        assert_near([one[:, :, :length]], [two], 1e-6)
        assert (one[:, :, length:] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_input_gives_the_same_bits(kind, case):
    fused, _ = KINDS[kind]
    first, second = (fused.apply(*case, *SCALES) for _ in range(2))
    assert torch.equal(first, second)
    for one, two in zip(gradients(first, case), gradients(second, case), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_of_padding_alone_loses_nothing(kind, case):
    fused, plain = KINDS[kind]
    nothing = torch.zeros_like(case[5])
    for function in (fused, plain):
        loss = function.apply(*case[:4], torch.ones_like(nothing), nothing, *SCALES)
        assert loss.item() == pytest.approx(0, abs=1e-5)
        assert all((part == 0).all() for part in gradients(loss, case))


def test_sides_that_are_one_tensor_get_both_gradients(case):
    side, _, other, _, rows, columns = case
    loss = RelationDivergence.apply(side, side, other, other, rows, columns, *SCALES)
    expected = formula("relation", [side, side, other, other, rows, columns])
    found, wanted = (torch.autograd.grad(value, side)[0].double() for value in (loss, expected))
    assert_near([found], [wanted], 1e-5)


def test_strides_of_any_kind_are_read_right(case):
    moved = [
        part.detach().contiguous() if i % 2 else part.detach().mT.contiguous().mT
        for i, part in enumerate(case[:4])
    ]
    for part in moved[:2]:
        part.requires_grad_()
    for fused, _ in KINDS.values():
        one, two = fused.apply(*case, *SCALES), fused.apply(*moved, *case[4:], *SCALES)
        assert torch.equal(one, two)
        for a, b in zip(gradients(one, case), gradients(two, moved), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("kernel", "own", "other", "dtype", "does"),
    [
        (score_kernel, 26, 64, torch.bfloat16, True),
        (score_kernel, 32, 128, torch.bfloat16, True),
        (score_kernel, 64, 64, torch.float16, True),
        (score_kernel, 128, 128, torch.bfloat16, False),
        (score_kernel, 128, 32, torch.float16, False),
        (score_kernel, 26, 64, torch.float32, True),
        (score_kernel, 64, 64, torch.float32, False),
        (relation_kernels, 26, 64, torch.float32, True),
        (relation_kernels, 128, 128, torch.float32, True),
        (relation_kernels, 192, 192, torch.float32, False),
        (relation_kernels, 192, 256, torch.bfloat16, True),
        (relation_kernels, 384, 768, torch.bfloat16, False),
    ],
)
def test_heads_too_wide_for_a_kernel_go_by_the_plain_form(kernel, own, other, dtype, does, monkeypatch):
    monkeypatch.setattr(tiles, "INTERPRETED", False)
    sides = (torch.empty(1, 1, 1, size, dtype=dtype) for size in (own, other))
    assert kernel.fits(*sides) == does


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from distill import score_kernel
from distill import relation_kernels as relation
from distill.tiles import width_of

TYPES = {"rows": "*i64", "columns": "*i64", "keys": "*i64", "own_scale": "fp32", "other_scale": "fp32"}
TYPES |= dict.fromkeys(["losses", "log_totals", "other_log_totals", "grad"], "*fp32")
SIDES = "query key other_query other_key for_query for_key left right other_left other_right gradients"
def build(kernel, shape, own=26, other=64, kind="*bf16", **more):
    constants = {"SIZE": own, "OTHER_SIZE": other, "WIDTH": width_of(own), "OTHER_WIDTH": other}
    constants |= more | {"TILE": shape["TILE"], "WIDEN": False}
    types = TYPES | dict.fromkeys(SIDES.split(), kind)
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {name: shape[name] for name in ("num_warps", "num_stages")}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    print(kernel.__name__, built.metadata.shared, len(built.asm["cubin"]) > 0)

build(score_kernel._score_kernel, score_kernel.score_shape(True, 32, 64), SPLIT=True)
build(score_kernel._score_kernel, score_kernel.score_shape(True, 32, 128), other=128, SPLIT=True)
halves = {"own": 64, "other": 64, "SPLIT": False, "kind": "*fp16"}
build(score_kernel._score_kernel, score_kernel.score_shape(True, 64, 64), **halves)
build(relation._relation_loss_kernel, relation.relation_shape(True, 32, 64))
for side in (False, True):
    build(relation._relation_gradient_kernel, relation.relation_shape(True, 32, 64), OF_RIGHT=side)
    wide = {"own": 256, "other": 256, "OF_RIGHT": side}
    build(relation._relation_gradient_kernel, relation.relation_shape(True, 256, 256), **wide)
    wide = {"own": 128, "other": 128, "OF_RIGHT": side, "kind": "*fp32"}
    build(relation._relation_gradient_kernel, relation.relation_shape(False, 128, 128), **wide)
"""


def test_kernels_compile_for_a_gpu_that_is_not_here(tmp_path):
    """The interpreter runs what a compiler refuses: sm_90 code is made by Triton's own tools."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=Path(__file__).parents[2],
        env={**clean, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 10
    for _, shared, written in rows:
        assert int(shared) <= 99 * 1024  # what a block may have on any GPU since Ampere
        assert written == "True"
