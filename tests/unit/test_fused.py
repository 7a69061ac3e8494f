"""Which fused parts a machine gets, and that a change of layer norms changes no weight and no result."""

import pytest
import torch
from torch import nn

from distill import fused
from distill.fused import choices, fuse_layer_norms, kernel


class Norm(nn.LayerNorm):
    """Stands where apex's class would; made with weights of its own."""


def test_a_cpu_gets_the_plain_twins():
    assert kernel("score_kernel", "cpu") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_choices_say_why():
    assert {choice.why for choice in choices() if "CPU" not in choice.part} == {"no GPU"}
    assert next(choice.part for choice in choices()) == "attention and relation losses"


def test_other_layer_norms_keep_names_weights_and_results(monkeypatch):
    monkeypatch.setattr(fused, "apex", lambda module, name: Norm)
    model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.LayerNorm(6, eps=1e-3)), nn.LayerNorm(6))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    rows, parameters = torch.randn(3, 4), dict(model.named_parameters())
    expected = model(rows)
    fuse_layer_norms(model)
    assert [type(module) for module in (model[1][0], model[2])] == [Norm, Norm]
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert torch.equal(model(rows), expected)


@pytest.mark.gpu
@pytest.mark.skipif(fused.apex("normalization", "FusedLayerNorm") is None, reason="needs NVIDIA's apex")
def test_apex_gives_the_results_of_torch():
    model = nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96)).cuda()
    rows = torch.randn(32, 64, device="cuda")
    expected = model(rows)
    fuse_layer_norms(model)
    torch.testing.assert_close(model(rows), expected, rtol=1e-4, atol=1e-5)
