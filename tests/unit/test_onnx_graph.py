"""ONNX graphs of every kind of model answer as torch does, and what is wrong is seen."""

from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from distill import nezha  # noqa: F401  (its model type becomes known)
from distill.onnx_graph import largest_difference, quantise_graph, write_graph
from distill.word_students import ENCODERS, PaddedLstm, WordModelConfig, WordModelForSequenceClassification

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def transformer(family: str) -> PreTrainedModel:
    """A tiny classifier whose logits differ from text to text."""
    config = AutoConfig.for_model(family, vocab_size=90, pad_token_id=0, **SHAPE)
    config.initializer_range = 0.5
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()


def of_words(kind: str, pair: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = WordModelConfig(kind=kind, vocab_size=90, embedding_size=16, pair=pair)
    return WordModelForSequenceClassification(shape).eval()


KINDS = {
    **{
        family: partial(transformer, family) for family in ("bert", "nezha", "roberta", "electra", "albert")
    },
    **{kind: partial(of_words, kind) for kind in ENCODERS if kind != "bilstm"},
    **{f"{kind} of pairs": partial(of_words, kind, True) for kind in ENCODERS},
}

LATER = [kind for kind in KINDS if kind != "bert"]


def answers_alike(model: PreTrainedModel, file: Path) -> None:
    """The graph answers as the model, its int8 form nearly so, and another model is told apart."""
    assert largest_difference(model, file, seed=1) < 0.5
    quantise_graph(file, file.with_name("int8.onnx"))
    int8 = largest_difference(model, file.with_name("int8.onnx"), seed=1)
    assert 0 < int8 < 20_000  # other answers, by less than twice their own size
    assert file.with_name("int8.onnx").stat().st_size < file.stat().st_size
    with torch.no_grad():
        [*model.parameters()][-1].add_(torch.tensor([0.0, 0.1]))
    assert largest_difference(model, file, seed=1) > 1


@pytest.mark.slow  # test_export.py exports a BiLSTM in every run
def test_an_lstm_over_padding_is_one_operator_and_answers_as_torch_does(tmp_path):
    model = of_words("bilstm")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    write_graph(model, tmp_path / "model.onnx", 18)
    assert any(isinstance(module, PaddedLstm) for module in model.modules())  # the model stays as it is
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    graph = onnx.load(tmp_path / "model.onnx")
    assert [entry.version for entry in graph.opset_import if not entry.domain] == [18]
    assert [node.op_type for node in graph.graph.node].count("LSTM") == 1
    axes = {
        entry.name: [size.dim_param for size in entry.type.tensor_type.shape.dim]
        for entry in graph.graph.input
    }
    assert list(axes) == ["input_ids", "attention_mask", "token_type_ids"]
    assert all(names == ["batch", "length"] for names in axes.values())
    answers_alike(model, tmp_path / "model.onnx")


@pytest.mark.parametrize("kind", ["bert", *(pytest.param(kind, marks=pytest.mark.slow) for kind in LATER)])
def test_every_kind_answers_as_torch_does(tmp_path, kind):
    model = KINDS[kind]()
    write_graph(model, tmp_path / "model.onnx", None)
    answers_alike(model, tmp_path / "model.onnx")
