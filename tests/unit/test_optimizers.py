"""BERT's Adam against its description, and which parameters decay."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from distill.optimizers import BertAdam, build_optimizer, parameter_groups
from distill.settings import OptimizerConfig

SMALL = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


def restated_bert_adam(
    weights: list[torch.Tensor], gradients: list[list[torch.Tensor]], settings: dict
) -> None:
    """The update as published with BERT: clip each tensor, two moments, no correction, decay."""
    means, squares = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    beta1, beta2 = settings["betas"]
    for step in gradients:
        for weight, gradient, mean, square in zip(weights, step, means, squares, strict=True):
            clipped = gradient * min(1.0, settings["clip"] / (gradient.norm() + 1e-6))
            mean.mul_(beta1).add_((1 - beta1) * clipped)
            square.mul_(beta2).add_((1 - beta2) * clipped**2)
            update = mean / (square.sqrt() + settings["eps"]) + settings["weight_decay"] * weight
            weight.sub_(settings["lr"] * update)


@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_bert_adam_does_what_was_published(clip):
    torch.manual_seed(0)
    start = [torch.randn(shape, dtype=torch.float64) for shape in ((3, 4), (5,), (2, 2, 2))]
    gradients = [[10 ** (-step) * torch.randn_like(w) for w in start] for step in range(5)]
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1, "clip": clip}
    parameters = [nn.Parameter(weight.clone()) for weight in start]
    optimizer = BertAdam(parameters, **settings)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    restated_bert_adam(start, gradients, settings)
    for parameter, expected in zip(parameters, start, strict=True):
        torch.testing.assert_close(parameter.data, expected)


def test_bert_adam_clips_nothing_at_zero():
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for parameter, clip in zip(parameters, (0.0, 1e9), strict=True):
        parameter.grad = torch.tensor([100.0, -3.0, 0.1])
        BertAdam([parameter], lr=0.1, clip=clip).step()
    assert torch.equal(*parameters)


def test_bert_adam_leaves_parameters_without_gradient_alone():
    parameter = nn.Parameter(torch.ones(3))
    BertAdam([parameter], lr=0.1).step()
    assert torch.equal(parameter, torch.ones(3))


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "albert"])
def test_biases_and_layer_norms_do_not_decay(family):
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **SMALL))
    decayed, plain = ({id(p) for p in group["params"]} for group in parameter_groups(model, 0.1))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            free = name == "bias" or isinstance(module, nn.LayerNorm)
            assert id(parameter) in (plain if free else decayed)
    assert len(decayed) + len(plain) == len(list(model.parameters()))
    assert [group["weight_decay"] for group in parameter_groups(model, 0.1)] == [0.1, 0.0]


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    chosen = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert sorted(chosen) == sorted(id(p) for p in model[1].parameters())


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("bert_adam", BertAdam)])
def test_an_optimizer_takes_its_settings(name, kind):
    config = OptimizerConfig(name=name, lr=0.3, beta1=0.5, beta2=0.6, eps=0.1, weight_decay=0.2)
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    assert type(optimizer) is kind
    chosen = [(g["lr"], g["betas"], g["eps"], g["weight_decay"]) for g in optimizer.param_groups]
    assert chosen == [(0.3, (0.5, 0.6), 0.1, 0.2), (0.3, (0.5, 0.6), 0.1, 0.0)]
