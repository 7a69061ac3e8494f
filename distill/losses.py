"""Distillation losses. Each returns a sum; the objective divides once, by the global count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distill.attention import Heads
from distill.fused import kernel
from distill.products import fast_products, padded

LOGITS_AT_ONCE = 1 << 22  # of a soft-target loss in fp32: 16 MB a copy


class PlainScoreError(torch.autograd.Function):
    """Sum over (batch, heads, i, j) of (c_s Qs_i . Ks_j - c_t Qt_i . Kt_j)^2 without a score tensor.

    With A = [c_s Qs, -c_t Qt] and B = [Ks, Kt] the difference of the two score matrices is A B', and
    ||A B'||^2 = <A'A, B'B>: small Gram matrices, so time and memory grow linearly with the
    length. The gradients are 2 A (B'B) and 2 B (A'A), in the student's columns. Sequences
    shorter than a Gram matrix is wide go by the scores themselves, which are then the smaller.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        other_query: Tensor,
        other_key: Tensor,
        rows: Tensor,
        columns: Tensor,
        scale: float,
        other_scale: float,
    ) -> Tensor:
        """The student's and the teacher's (`other_`) queries and keys, (batch, heads, length, head size);
        masks of queries (`rows`) and keys (`columns`), (batch, length).
        """
        own = query.shape[-1]  # columns of the student's, which alone takes gradients
        rows, columns = (mask.float()[:, None, :, None] for mask in (rows, columns))
        a = _side_by_side(query, rows * scale, other_query, rows * -other_scale)
        b = _side_by_side(key, columns, other_key, columns)
        if a.shape[-2] < a.shape[-1]:
            error = a @ b.mT  # (batch, heads, length, length), length small
            loss = error.square().sum()
            grads = error @ (b[..., :own] * (2 * scale)), error.mT @ (a[..., :own] * 2)
        else:
            gram_a, gram_b = a.mT @ a, b.mT @ b  # (batch, heads, ds + dt, ds + dt)
            loss = (gram_a * gram_b).sum()
            grads = a @ (gram_b[..., :own] * (2 * scale)), b @ (gram_a[..., :own] * 2)
        ctx.save_for_backward(*(grad[..., : query.shape[-2], :] for grad in grads))
        ctx.dtype = query.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        for_query, for_key = ((grad * saved).to(ctx.dtype) for saved in ctx.saved_tensors)
        return for_query, for_key, *[None] * 6


def _side_by_side(left: Tensor, left_factor: Tensor, right: Tensor, right_factor: Tensor) -> Tensor:
    """Both times their factors, in fp32, joined along the last dimension in one pass; zeros behind them."""
    *before, length, width = left.shape
    shape = *before, padded(length), width + right.shape[-1]
    joined = torch.empty(shape, dtype=torch.float32, device=left.device)
    torch.mul(left, left_factor, out=joined[..., :length, :width])
    torch.mul(right, right_factor, out=joined[..., :length, width:])
    joined[..., length:, :] = 0
    return joined


def attention_score_loss(student: Heads, teacher: Heads, query_mask: Tensor, key_mask: Tensor) -> Tensor:
    """Squared error of attention scores before softmax (Jiao et al. 2020, TinyBERT, eq. 7).

    Args:
        student: Queries and keys of one layer, (batch, heads, length, student head size).
        teacher: The same with as many heads and the teacher's head size; takes no gradient.
        query_mask: (batch, length), 0 where a query's scores don't count.
        key_mask: (batch, length), 0 where a key's don't.

    Returns the sum over batch, heads, queries and keys, in fp32.
    """
    fused = kernel("score_kernel", query_mask.device.type)
    fused = fused if fused and fused.fits(student.query, teacher.query) else None
    function = fused.ScoreError if fused else PlainScoreError
    with torch.autocast(query_mask.device.type, enabled=False), fast_products():
        return function.apply(
            student.query,
            student.key,
            teacher.query.detach(),
            teacher.key.detach(),
            query_mask,
            key_mask,
            student.scaling,
            teacher.scaling,
        )


class _SoftTargets(torch.autograd.Function):
    """The loss and its gradient, some rows at a time: a vocabulary's logits are never all there in fp32."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        loss = torch.zeros((), device=student.device)
        grad = torch.empty_like(student)
        rows = max(1, LOGITS_AT_ONCE // student.shape[-1])
        for own, other, out in zip(student.split(rows), teacher.split(rows), grad.split(rows), strict=True):
            own = functional.log_softmax(own.float() / temperature, dim=-1)
            target = functional.log_softmax(other.float() / temperature, dim=-1)
            probability = target.exp()
            loss += target.sub_(own).mul_(probability).sum()
            out.copy_(own.exp_().sub_(probability).mul_(temperature))
        ctx.save_for_backward(grad)
        return loss * temperature**2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (saved,) = ctx.saved_tensors
        return saved * grad.to(saved.dtype), None, None


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of softened class probabilities, times T^2, summed over rows.

    T^2 keeps the gradient's size independent of the temperature (Hinton et al. 2015, section 2).

    Args:
        student: Logits, (rows, classes); a vocabulary's are classes too.
        teacher: The same; takes no gradient.
        temperature: T.
    """
    return _SoftTargets.apply(student, teacher.detach(), temperature)


def label_loss(student: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (batch, classes) with class indices (batch,), summed."""
    return functional.cross_entropy(student.float(), labels, reduction="sum")


def squared_error(student: Tensor, target: Tensor) -> Tensor:
    """Squared error of logits (Ba and Caruana 2014; Tang et al. 2019, eq. 6) or of a regression, summed."""
    return (student.float() - target.float()).square().sum()


def soft_multi_label_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL of each label's softened probability, times T^2, summed. Logits (batch, labels)."""
    student, teacher = student.float() / temperature, teacher.float() / temperature
    target = teacher.sigmoid()
    own = functional.binary_cross_entropy_with_logits(student, target, reduction="sum")
    least = functional.binary_cross_entropy_with_logits(teacher, target, reduction="sum")
    return (own - least) * temperature**2


def multi_label_loss(student: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of logits (batch, labels) with zeros and ones of that shape, summed."""
    return functional.binary_cross_entropy_with_logits(student.float(), labels, reduction="sum")
