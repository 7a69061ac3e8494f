"""Costs against the formulas of the shapes, and traces that other tools can read."""

import json
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from distill.accounting import Cost, forward_cost, matrix_ceiling, model_cost, peak_memory_mb, profiled
from distill.attention import install
from distill.encoders import run_encoder
from distill.window import Window
from distill.word_students import WordModelConfig, WordModelForSequenceClassification

CPU = torch.device("cpu")


@pytest.mark.parametrize(("family", "layers"), [("bert", 3), ("roberta", 2), ("albert", 4)])
def test_an_encoder_costs_what_its_shape_says(family, layers):
    width, wide = 24, 40
    config = AutoConfig.for_model(
        family,
        num_hidden_layers=layers,
        hidden_size=width,
        embedding_size=16,
        intermediate_size=wide,
        num_attention_heads=4,
        vocab_size=50,
    )
    model = AutoModel.from_config(config, add_pooling_layer=False)
    collector = install(model)
    cost = forward_cost(lambda batch: run_encoder(model, collector, batch), CPU)
    projected = 2 * 16 * width if family == "albert" else 0  # its embedding is narrower
    assert cost.per_token == layers * 2 * (4 * width * width + 2 * width * wide) + projected
    assert cost.per_pair == layers * 4 * width
    assert cost.per_sequence == 0


def test_a_models_cost_needs_none_of_its_weights():
    """ZeRO 3 keeps them in parts, and an earlier stage may have left them on a GPU."""
    model = WordModelForSequenceClassification(WordModelConfig(kind="bilstm", vocab_size=20))
    state = torch.get_rng_state()
    expected = model_cost(model)
    assert torch.equal(torch.get_rng_state(), state)
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    assert model_cost(model) == expected
    assert expected.per_token == 2 * 2 * 4 * 300 * (300 + 300)  # two directions of four gates


def test_a_convolution_without_padding_has_a_cost():
    convolution, seen = nn.Conv1d(8, 4, 5), []

    def run(batch):
        seen.append(batch.ids.shape[1])
        convolution(torch.zeros(1, 8, seen[-1]))

    assert forward_cost(run, CPU) == Cost(-4 * 2 * 8 * 4 * 5, 2 * 8 * 4 * 5, 0.0)
    assert seen == [16, 24, 32]


def test_costs_are_of_lengths_that_a_model_takes():
    shape = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    kinds = (AutoConfig.for_model("bert", max_position_embeddings=most, **shape) for most in (6, 64))
    short, long = (model_cost(AutoModel.from_config(kind)) for kind in kinds)
    assert short == long


def test_a_head_costs_by_the_sequence():
    head = nn.Linear(8, 3)
    cost = forward_cost(lambda batch: head(torch.zeros(len(batch.ids), 8)), CPU)
    assert cost == Cost(2 * 8 * 3, 0.0, 0.0)


@pytest.mark.parametrize(("ceiling", "most"), [(1.0, 1.0), (1e30, 0.0)])
def test_no_step_has_more_than_the_ceiling(ceiling, most):
    """A machine that was busy when its ceiling was measured reaches more later."""
    window = Window()
    window.add(0, {"loss": torch.tensor(1.0)}, torch.tensor([0.0] * 3 + [4.0, 8.0, 16.0, 0.0, 8.0, 16.0]))
    assert window.close(Cost(per_sequence=1e9), ceiling)["mfu"] == most


def test_costs_add_up():
    cost = (Cost(1, 2, 3) + Cost(10, 20, 30)).times(2)
    assert cost == Cost(22, 44, 66)
    assert cost.flops(sequences=1, tokens=2, pairs=4) == 22 + 2 * 44 + 4 * 66


def test_the_ceiling_and_the_memory_are_numbers_of_this_machine():
    assert matrix_ceiling(CPU, torch.float32) > 1e8
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert peak_memory_mb(CPU) == pytest.approx(int(status["VmHWM"].split()[0]) / 1024, rel=0.1)


def test_the_ceiling_is_that_of_the_quickest_product_after_the_first(monkeypatch):
    took = [4.0, 2.0, 8.0, 4.0, 4.0]
    clock = accumulate([1.0, *(seconds for each in took for seconds in (0.5, each))])
    monkeypatch.setattr("distill.accounting.time", SimpleNamespace(perf_counter=clock.__next__))
    monkeypatch.setattr("distill.accounting.SIZE", {"cpu": 8})
    assert matrix_ceiling(CPU, torch.float32) == 2 * 8**3 / 2.0


def test_a_trace_holds_the_steps_asked_for(tmp_path):
    with profiled(2, tmp_path / "trace.json") as done:
        for _ in range(6):
            torch.ones(64, 64) @ torch.ones(64, 64)
            done()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::mm" for event in events) == 2


def test_no_steps_leave_no_trace(tmp_path):
    with profiled(0, tmp_path / "trace.json") as done:
        done()
    assert not list(tmp_path.iterdir())
