"""Weights and optimizer state, whole and by name, however DeepSpeed shares them out.

DeepSpeed's own checkpoints are of one number of processes and one ZeRO stage. Here every parameter's fp32
weight and its moments are gathered, and set again in an engine that may share them out in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

_Masters = dict[nn.Parameter, tuple[Tensor, dict[str, Tensor]]]  # fp32 weight and optimizer state of each

WEIGHT, BUFFER = "weight", "buffer"  # kinds of tensors beside the optimizer's moments
SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # what fp16's loss scale counts


class WholeState:
    """What training changes in a module and its optimizer, under a ZeRO stage.

    Tensors are named KIND/NAME: `weight`, a moment of the optimizer such as `exp_avg`, or `buffer`.
    """

    def __init__(self, module: nn.Module, optimizer: Any, zero: int):
        self.module = module
        self.optimizer = optimizer  # DeepSpeed's, or torch's where DeepSpeed adds nothing
        self.base: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        self.zero = zero

    # ------------------------------------------------------------------------------------- out
    def gather(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, whole, on every rank, one after another: a stage's shards need not fit at once."""
        self._make_moments()
        self._link()
        masters = self._masters()
        moments = self._moments()
        for name, parameter in self.module.named_parameters():
            yield f"{WEIGHT}/{name}", self._whole(parameter, masters, None)
            if parameter.requires_grad:
                for kind in moments:
                    yield f"{kind}/{name}", self._whole(parameter, masters, kind)
        for name, buffer in self._buffers():
            yield f"{BUFFER}/{name}", buffer

    def numbers(self) -> dict[str, Any]:
        """Updates that the optimizer counts, and the state of fp16's loss scale."""
        steps = [int(counter["step"]) for counter in self._counters()]
        scale = {name: value for name, value in vars(self._scaler()).items() if name in SCALE}
        return {"updates": steps[0] if steps else 0, "scale": scale}

    # -------------------------------------------------------------------------------------- in
    def scatter(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Set what `gather` and `numbers` gave.

        Raises ValueError where it is of another module or optimizer.
        """
        self._make_moments()
        self._link()
        self._check(tensors)
        masters = self._masters()
        moments = self._moments()
        for name, parameter in self.module.named_parameters():
            self._set(parameter, masters, None, tensors[f"{WEIGHT}/{name}"])
            if parameter.requires_grad:
                for kind in moments:
                    self._set(parameter, masters, kind, tensors[f"{kind}/{name}"])
        for name, buffer in self._buffers():
            buffer.copy_(tensors[f"{BUFFER}/{name}"])
        self.count_from(numbers["updates"])
        scaler = self._scaler()
        for name, value in numbers["scale"].items():
            if hasattr(scaler, name):
                setattr(scaler, name, value)

    def count_from(self, updates: int) -> None:
        """Let the optimizer have made so many updates."""
        for counter in self._counters():
            step = counter["step"]
            counter["step"] = torch.full_like(step, updates) if torch.is_tensor(step) else updates

    # ------------------------------------------------------------------------------------------
    def _whole(self, parameter: nn.Parameter, masters: _Masters, kind: str | None) -> Tensor:
        if self.zero == 0 or not parameter.requires_grad:
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.zero == 3):
                if parameter not in masters:
                    return parameter.detach().clone()  # it is not trained
                weight, state = masters[parameter]
                return (weight if kind is None else state[kind]).detach()
        if kind is None:
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)

    @torch.no_grad()
    def _set(self, parameter: nn.Parameter, masters: _Masters, kind: str | None, value: Tensor) -> None:
        if kind is None:
            rank0 = 0 if self.zero == 3 else None
            with deepspeed.zero.GatheredParameters([parameter], rank0, enabled=self.zero == 3):
                parameter.copy_(value)  # to the precision that it computes in
        if parameter in masters:
            weight, state = masters[parameter]
            (weight if kind is None else state[kind]).copy_(value)
        elif parameter.requires_grad and self.zero == 3:
            share = _share(value, parameter.ds_tensor)  # type: ignore[attr-defined]
            if kind is None:
                safe_set_local_fp32_param(parameter, share)
            else:
                safe_set_local_optimizer_state(parameter, share, kind)
        elif parameter.requires_grad:
            value = value.to(parameter.device)
            if kind is None:
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, kind)

    def _masters(self) -> _Masters:
        """Without ZeRO: the fp32 weight and the state of each trained parameter."""
        if self.zero:
            return {}
        if self.base is self.optimizer:
            parameters = [parameter for group in self.base.param_groups for parameter in group["params"]]
            return {parameter: (parameter, self.base.state[parameter]) for parameter in parameters}
        found: _Masters = {}
        for number, parameters in enumerate(self.optimizer.fp16_groups):
            if hasattr(self.optimizer, "fp32_groups"):  # weight by weight
                weights = self.optimizer.fp32_groups[number]
                states = [self.base.state[weight] for weight in weights]
            else:  # a group's weights in one tensor
                flat = self.optimizer.fp32_groups_flat[number]
                weights = _pieces(flat, parameters)
                cut = {kind: _pieces(self.base.state[flat][kind], parameters) for kind in self._moments()}
                states = [dict(zip(cut, pieces, strict=True)) for pieces in zip(*cut.values(), strict=True)]
            found |= zip(parameters, zip(weights, states, strict=True), strict=True)
        return found

    def _moments(self) -> list[str]:
        """Names of what the optimizer keeps of each weight, by the first: all keep the same."""
        for weight, state in self.base.state.items():
            same = (name for name, value in state.items() if torch.is_tensor(value) and name != "step")
            return sorted(name for name in same if state[name].shape == weight.shape)
        return []

    def _make_moments(self) -> None:
        """Let the optimizer make room for its moments, as it does in its first step; no weight changes."""
        if self.base.state:
            return
        assert all(group["lr"] == 0 for group in self.base.param_groups)
        if self.zero == 3:  # which gives the optimizer one shard at a time
            weights = self.optimizer.fp32_partitioned_groups_flat
            steps: list[Callable[[], object]] = [
                partial(self.optimizer._optimizer_step, number) for number in range(len(weights))
            ]
        else:
            weights = [weight for group in self.base.param_groups for weight in group["params"]]
            steps = [self.base.step]
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        for step in steps:
            step()
        for weight in weights:
            weight.grad = None
        self.count_from(0)

    def _link(self) -> None:
        """Let DeepSpeed find the moments of each parameter in its shards of ZeRO 1 and 2.

        It does so once, after the first step of one group of parameters, and misses the others'.
        """
        if self.zero in (1, 2):
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        kinds = [WEIGHT, *self._moments()]
        shapes = {
            f"{kind}/{name}": tuple(getattr(parameter, "ds_shape", parameter.shape))
            for name, parameter in self.module.named_parameters()
            for kind in (kinds if parameter.requires_grad else kinds[:1])
        }
        shapes |= {f"{BUFFER}/{name}": tuple(buffer.shape) for name, buffer in self._buffers()}
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for name in sorted(shapes.keys() | given.keys()):
            here, there = (found.get(name, "none") for found in (shapes, given))
            if here != there:
                raise ValueError(f"the shape of {name} is {there} there and {here} here")

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        saved = self.module.state_dict().keys()
        return ((name, buffer) for name, buffer in self.module.named_buffers() if name in saved)

    def _counters(self) -> list[dict[str, Any]]:
        every = [*self.base.state.values(), *self.base.param_groups]
        return [counter for counter in every if "step" in counter]

    def _scaler(self) -> object:
        for name in ("loss_scale_config", "loss_scaler"):
            if hasattr(self.optimizer, name):
                return getattr(self.optimizer, name)
        return SimpleNamespace()


def _pieces(flat: Tensor, like: list[nn.Parameter]) -> list[Tensor]:
    sizes = [parameter.numel() for parameter in like]
    split = flat[: sum(sizes)].split(sizes)
    return [piece.view(parameter.shape) for piece, parameter in zip(split, like, strict=True)]


def _share(value: Tensor, own: Tensor) -> Tensor:
    """This rank's part of a tensor under ZeRO 3, as long as its `own`: the last is filled up with zeros."""
    begin = torch.distributed.get_rank() * own.numel()
    part = value.flatten()[begin : begin + own.numel()]
    return nn.functional.pad(part, (0, own.numel() - part.numel())).to(own.device)
