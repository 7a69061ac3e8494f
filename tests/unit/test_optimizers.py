"""BERT's Adam against its description, and which parameters decay."""

import math

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from distill import optimizers
from distill.optimizers import BertAdam, Lamb, build_optimizer, parameter_groups
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


@pytest.mark.parametrize("kind", [BertAdam, Lamb])
def test_parameters_without_gradient_are_left_alone(kind):
    parameter = nn.Parameter(torch.ones(3))
    kind([parameter], lr=0.1).step()
    assert torch.equal(parameter, torch.ones(3))


@pytest.mark.parametrize("decay", [0.1, 0.0])
def test_lamb_does_what_was_published(decay):
    torch.manual_seed(0)
    weights = [torch.randn(shape, dtype=torch.float64) for shape in ((3, 4), (5,))]
    weights.append(torch.zeros(2, dtype=torch.float64))  # no size: Adam's own step
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    idle = nn.Parameter(torch.ones(2, dtype=torch.float64))  # has no gradient
    optimizer = Lamb([idle, *parameters], lr=0.01, betas=(0.8, 0.9), eps=1e-3, weight_decay=decay)
    moments = [[torch.zeros_like(weight) for weight in weights] for _ in range(2)]
    for step in range(1, 5):
        for weight, parameter, mean, square in zip(weights, parameters, *moments, strict=True):
            gradient = parameter.grad = torch.randn_like(weight) / step
            mean.mul_(0.8).add_(0.2 * gradient)
            square.mul_(0.9).add_(0.1 * gradient**2)
            update = mean / (1 - 0.8**step) / ((square / (1 - 0.9**step)).sqrt() + 1e-3) + decay * weight
            trust = weight.norm() / update.norm() if decay and weight.norm() else 1.0
            weight.sub_(0.01 * trust * update)
        optimizer.step()
    for parameter, expected in zip(parameters, weights, strict=True):
        torch.testing.assert_close(parameter.data, expected)
    assert idle.tolist() == [1, 1]


def test_lamb_continues_from_its_saved_state():
    torch.manual_seed(0)
    gradients, start = torch.randn(4, 3), torch.randn(3)

    def steps(optimizer: Lamb, some: torch.Tensor) -> None:
        for gradient in some:
            optimizer.param_groups[0]["params"][0].grad = gradient.clone()
            optimizer.step()

    whole, killed = (nn.Parameter(start.clone()) for _ in range(2))
    steps(Lamb([whole], lr=0.1), gradients)
    first = Lamb([killed], lr=0.1)
    steps(first, gradients[:2])
    second = Lamb([killed], lr=0.1)
    second.load_state_dict(first.state_dict())
    steps(second, gradients[2:])
    assert torch.equal(whole, killed)


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


def test_biases_of_an_lstm_do_not_decay():
    decayed, plain = parameter_groups(nn.LSTM(3, 2, bidirectional=True), 0.1)
    assert {parameter.dim() for parameter in decayed["params"]} == {2}
    assert len(plain["params"]) == 4


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    chosen = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert sorted(chosen) == sorted(id(p) for p in model[1].parameters())


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("lamb", Lamb), ("bert_adam", BertAdam)]
)
def test_an_optimizer_takes_its_settings(name, kind):
    config = OptimizerConfig(name=name, lr=0.3, beta1=0.5, beta2=0.6, eps=0.1, weight_decay=0.2, clip=0.7)
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    assert type(optimizer) is kind
    chosen = [(g["lr"], g["betas"], g["eps"], g["weight_decay"]) for g in optimizer.param_groups]
    assert chosen == [(0.3, (0.5, 0.6), 0.1, 0.2), (0.3, (0.5, 0.6), 0.1, 0.0)]
    assert [g["clip"] for g in optimizer.param_groups if "clip" in g] == [0.7, 0.7] * (kind is BertAdam)


@pytest.mark.parametrize(
    ("name", "kind", "own"),
    [("adamw", "FusedAdam", {"adam_w_mode": True}), ("lamb", "FusedLAMB", {"max_grad_norm": math.inf})],
)
def test_apexs_optimizers_take_the_same_settings(monkeypatch, name, kind, own):
    """LAMB of apex would clip by itself too."""
    monkeypatch.setattr(
        optimizers, "apex", lambda module, name: lambda groups, **given: (name, groups, given)
    )
    config = OptimizerConfig(name=name, lr=0.3, beta1=0.5, beta2=0.6, eps=0.1, weight_decay=0.2)
    made, groups, given = build_optimizer(nn.Linear(2, 2), config)
    assert (made, [group["weight_decay"] for group in groups]) == (kind, [0.2, 0.0])
    assert given == {"lr": 0.3, "betas": (0.5, 0.6), "eps": 0.1, **own}
