"""Optimizers: torch's AdamW, and the original BERT Adam for runs faithful to the paper's code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from distill.settings import OptimizerConfig

NO_DECAY = ("bias", "LayerNorm.weight", "layernorm.weight", "layer_norm.weight", "norm.weight")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters, those without weight decay (biases, layer norms) apart."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if name.endswith(NO_DECAY) else decayed).append(parameter)
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
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)


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
