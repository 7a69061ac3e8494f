"""Optimizers: AdamW, LAMB for large batches, and BERT's own Adam, which the TinyBERT code trains with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from distill.fused import apex
from distill.settings import OptimizerConfig

NO_DECAY = ("LayerNorm.weight", "norm.weight")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters, those without weight decay (biases, layer norms) apart."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            bias = name.rpartition(".")[2].startswith("bias")  # an LSTM's are bias_ih_l0 and so on
            (plain if bias or name.endswith(NO_DECAY) else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of a run, over every trainable parameter of `module`."""
    groups = parameter_groups(module, config.weight_decay)
    betas = (config.beta1, config.beta2)
    if config.name == "bert_adam":
        return BertAdam(groups, lr=config.lr, betas=betas, eps=config.eps, clip=config.clip)
    if config.name == "lamb":
        fused = apex("optimizers", "FusedLAMB")
        if fused:  # DeepSpeed clips, with every optimizer alike
            return fused(groups, lr=config.lr, betas=betas, eps=config.eps, max_grad_norm=math.inf)
        return Lamb(groups, lr=config.lr, betas=betas, eps=config.eps)
    fused = apex("optimizers", "FusedAdam")
    if fused:
        return fused(groups, lr=config.lr, betas=betas, eps=config.eps, adam_w_mode=True)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)


class Lamb(torch.optim.Optimizer):
    """Adam whose step on each tensor has the length lr |w| (You et al. 2020, LAMB, algorithm 2).

    The update m / (sqrt(v) + eps) + decay w, corrected for bias, is scaled by |w| / |update|. Groups
    without weight decay (biases, layer norms) go by Adam's own step, as in the authors' code and apex.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient, all of a group at once."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            group["step"] += 1
            if not weights:
                continue
            updates = self._adam(weights, group)
            if group["weight_decay"]:
                torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
                sizes, lengths = torch._foreach_norm(weights), torch._foreach_norm(updates)
                torch._foreach_mul_(updates, list(map(_trust_ratio, sizes, lengths)))
            torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _adam(self, weights: list[torch.Tensor], group: dict[str, Any]) -> list[torch.Tensor]:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {name: torch.zeros_like(weight) for name in ("mean", "square")}
        means = [self.state[weight]["mean"] for weight in weights]
        squares = [self.state[weight]["square"] for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        (beta1, beta2), step = group["betas"], group["step"]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, math.sqrt(1 - beta2**step))
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, roots)
        torch._foreach_div_(updates, 1 - beta1**step)
        return list(updates)


def _trust_ratio(size: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """|w| / |update|, 1 where either is 0."""
    return torch.where((size > 0) & (length > 0), size / length, 1.0)


class BertAdam(torch.optim.Optimizer):
    """Adam as BERT was trained: no bias correction, decoupled decay, each tensor clipped by itself.

    Devlin et al. 2019; TinyBERT trains with the same. The update is m / (sqrt(v) + eps) + decay w.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        clip: float = 1.0,
        weight_decay: float = 0.01,
    ):
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": eps, "clip": clip, "weight_decay": weight_decay},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        if group["clip"]:
            norm = torch.linalg.vector_norm(gradient)
            gradient = gradient * (group["clip"] / (norm + 1e-6)).clamp(max=1.0)
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = state["mean"] / (state["square"].sqrt() + group["eps"])
        parameter.sub_(update + group["weight_decay"] * parameter, alpha=group["lr"])
