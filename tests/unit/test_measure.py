"""Metrics against their libraries, predictions in the data's order, size and latency."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from data_pipeline.settings import TaskConfig
from data_pipeline.tasks import Encoded, encode_split
from data_pipeline.vocabulary import load_vocabulary
from distill import measure
from distill.encoders import build_classifier, model_inputs, read_config
from distill.measure import (
    agreement,
    by_class,
    dev_scores,
    flops,
    latencies,
    own_predictions,
    predict,
    size,
    task_metrics,
)
from distill.sources import task_batch

LABELS = np.random.default_rng(0).integers(0, 2, 50)


def logits_of(predicted: np.ndarray, classes: int = 2) -> torch.Tensor:
    """Logits whose largest are these classes."""
    return nn.functional.one_hot(torch.from_numpy(predicted), classes) * 3.0 - 1.0


@pytest.fixture
def data(tiny_model, tiny_task) -> Encoded:
    task = TaskConfig(train=str(tiny_task / "train.tsv"), dev=str(tiny_task / "dev.tsv"))
    return encode_split(task.dev, task, load_vocabulary(tiny_model), ["negative", "positive"])


@pytest.fixture
def model(tiny_model) -> PreTrainedModel:
    torch.manual_seed(0)
    config = read_config(tiny_model)
    config.initializer_range = 0.5  # answers differ visibly from example to example
    return build_classifier(None, config, ["negative", "positive"]).eval().double()


# ---- metrics


@pytest.mark.parametrize(
    ("selection", "expected"),
    [("accuracy", accuracy_score), ("f1", f1_score), ("matthews", matthews_corrcoef)],
)
def test_classification_metrics_are_the_librarys(selection, expected):
    predicted = np.where(np.arange(50) % 3 == 0, 1 - LABELS, LABELS)
    scores = task_metrics(logits_of(predicted), LABELS, selection)
    assert scores[selection] == pytest.approx(expected(LABELS, predicted))
    assert scores["accuracy"] == pytest.approx(accuracy_score(LABELS, predicted))


def test_f1_of_more_classes_is_their_mean():
    labels, predicted = np.array([0, 1, 2, 2, 1]), np.array([0, 2, 2, 2, 1])
    scores = task_metrics(logits_of(predicted, 3), labels, "f1")
    assert scores["f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_regression_metrics_are_the_librarys():
    rng = np.random.default_rng(1)
    values, labels = rng.normal(size=(2, 30)).astype(np.float32)
    scores = task_metrics(torch.from_numpy(values)[:, None], labels, "pearson_spearman")
    assert scores["pearson"] == pytest.approx(pearsonr(values, labels).statistic)
    assert scores["spearman"] == pytest.approx(spearmanr(values, labels).statistic)
    assert scores["pearson_spearman"] == pytest.approx((scores["pearson"] + scores["spearman"]) / 2)


def test_a_model_that_says_one_thing_correlates_with_nothing():
    scores = task_metrics(torch.ones(30, 1), np.arange(30.0), "pearson_spearman")
    assert scores == {"pearson": 0.0, "spearman": 0.0, "pearson_spearman": 0.0}


@pytest.mark.filterwarnings("error")
def test_answers_of_one_kind_are_measured_without_a_warning_of_the_library():
    constant = task_metrics(torch.arange(30.0)[:, None], np.ones(30), "pearson_spearman")
    assert constant["pearson_spearman"] == 0.0
    never = logits_of(np.zeros(5, dtype=np.int64), 3)
    for selection in ("f1", "f1_micro", "f1_macro"):
        task_metrics(never, np.array([0, 1, 2, 2, 1]), selection)
    assert (
        task_metrics(logits_of(np.zeros(5, dtype=np.int64)), np.zeros(5, dtype=np.int64), "f1")["f1"] == 0
    )


@pytest.mark.parametrize("selection", ["f1_micro", "f1_macro"])
def test_f1_over_more_classes_is_the_librarys(selection):
    labels, predicted = np.array([0, 1, 2, 2, 1]), np.array([0, 2, 2, 2, 1])
    scores = task_metrics(logits_of(predicted, 3), labels, selection)
    expected = f1_score(labels, predicted, average=selection.removeprefix("f1_"))
    assert scores[selection] == pytest.approx(expected)


def test_several_labels_are_those_above_zero():
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(40, 3)), rng.integers(0, 2, (40, 3))
    right, said = (logits > 0) == labels, logits > 0
    hits, all_of = (said & (labels == 1)).sum(0), said.sum(0) + labels.sum(0)
    scores = task_metrics(torch.from_numpy(logits), labels, "f1_micro")
    assert scores["accuracy"] == pytest.approx(right.all(1).mean())
    assert scores["f1_micro"] == pytest.approx(2 * hits.sum() / all_of.sum())
    assert scores["f1_macro"] == pytest.approx((2 * hits / all_of).mean())


def test_scores_of_other_files_carry_their_names():
    logits = {"dev": logits_of(LABELS), "mismatched": logits_of(1 - LABELS)}
    scores = dev_scores(logits, dict.fromkeys(logits, LABELS), TaskConfig("", ""))
    assert scores == {"accuracy": 1.0, "accuracy_mismatched": 0.0}


def test_classes_that_never_occur_have_their_rows():
    found = by_class(logits_of(np.array([0, 1, 1]), 3), np.array([0, 0, 1]), ["a", "b", "c"])
    assert found["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]  # rows are the true ones
    assert [found["classes"][name]["precision"] for name in "abc"] == [1.0, 0.5, 0.0]
    assert [found["classes"][name]["recall"] for name in "abc"] == [0.5, 1.0, 0.0]
    assert [found["classes"][name]["support"] for name in "abc"] == [2, 1, 0]


def test_of_several_labels_every_class_has_its_row_and_nothing_is_confused():
    said, labels = torch.tensor([[1.0, -1.0], [2.0, 3.0], [-1.0, -2.0]]), np.array([[1, 0], [0, 1], [0, 1]])
    found = by_class(said, labels, ["a", "b"])
    assert [found["classes"][name]["precision"] for name in "ab"] == [0.5, 1.0]
    assert [found["classes"][name]["recall"] for name in "ab"] == [1.0, 0.5]
    assert found["averages"]["macro avg"]["recall"] == 0.75
    assert "confusion" not in found


def test_labels_that_are_never_given_nor_said_are_worth_nothing():
    scores = task_metrics(-torch.ones(4, 2), np.zeros((4, 2), dtype=np.int64), "f1_micro")
    assert scores == {"accuracy": 1.0, "f1_micro": 0.0, "f1_macro": 0.0}


def test_models_agree_on_an_example_where_all_its_labels_are_the_same():
    one, other = torch.tensor([[1.0, -1.0], [1.0, 2.0]]), torch.tensor([[2.0, -3.0], [3.0, -1.0]])
    assert agreement(one, other, several=True) == 0.5
    assert agreement(one, other) == 0.5
    assert agreement(one[:, :1], -other[:, :1]) is None
    assert agreement(one[:, :1], -other[:, :1], several=True) == 0.0


# ---- predictions


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_predictions_are_in_the_datas_order(model, data, batch_size):
    one_by_one = torch.cat([alone(model, data, i) for i in range(len(data))])
    assert one_by_one.std(dim=0).min() > 0.01
    torch.testing.assert_close(predict(model, data, batch_size), one_by_one.float())


@pytest.mark.parametrize("batch_size", [3, 30])
def test_predictions_shared_out_over_ranks_are_those_of_one(model, data, monkeypatch, batch_size):
    """Rows that are repeated, for the ranks to do as many batches as one another, count once."""
    data, parts = data.rows(0, 20), []
    expected = own_predictions(model, data, batch_size)
    torch.testing.assert_close(predict(model, data, batch_size), expected)
    monkeypatch.setattr(measure, "world_size", lambda: 3)
    monkeypatch.setattr(measure, "sum_over_ranks", lambda results: parts.append(results) or sum(parts))
    for number in range(3):
        monkeypatch.setattr(measure, "rank", lambda number=number: number)
        found = predict(model, data, batch_size)
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def alone(model: PreTrainedModel, data: Encoded, example: int) -> torch.Tensor:
    ids, segments = (torch.from_numpy(x[example]).long()[None] for x in (data.ids, data.segments))
    return model(ids, torch.ones_like(ids), segments).logits


def test_predictions_carry_no_gradient(model, data):
    assert not predict(model, data).requires_grad


@pytest.mark.parametrize(("family", "types"), [("bert", 2), ("roberta", 1)])
def test_segments_go_to_the_models_that_have_them(data, family, types):
    small = {"vocab_size": 300, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(family, type_vocab_size=types, **small)
    model = AutoModelForSequenceClassification.from_config(config)
    inputs = model_inputs(model, task_batch(data, np.array([0, 1])))
    assert ("token_type_ids" in inputs) is (types > 1)
    assert model(**inputs).logits.shape == (2, 2)


# ---- size and latency


def test_shared_weights_count_once():
    layer = nn.Linear(3, 4)
    assert size(nn.Sequential(layer, layer))["parameters"] == 16


def test_megabytes_are_of_four_bytes_each():
    assert size(nn.Linear(1000, 500, bias=False))["megabytes"] == 2.0


def test_a_cost_is_that_of_an_example_of_median_length(model, data):
    some = data.rows(0, 9)
    each = sorted(flops(model, some.rows(number, number + 1)) for number in range(9))
    assert each[0] < flops(model, some) == each[4] < each[-1]


@pytest.mark.parametrize(("batch_size", "rows"), [(4, 4), (100, 20)])
def test_a_latency_is_that_of_batches_of_a_size_over_all_lengths(
    model, data, monkeypatch, batch_size, rows
):
    data, seen = data.rows(0, 20), []
    moments = iter(0.25 * tick for tick in range(1000))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(moments))
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"]), with_kwargs=True)
    both = latencies({"one": model, "other": model}, {"one": data, "other": data}, 6, batch_size)
    assert both == {"one": [250.0] * 6, "other": [250.0] * 6}
    assert {len(ids) for ids in seen} == {rows}
    assert all(torch.equal(first, second) for first, second in zip(seen[::2], seen[1::2], strict=True))
    widths = [ids.shape[1] for ids in seen[-24::4]]  # both models, twice a batch
    order = sorted(data.lengths)
    assert (widths[0], widths[-1]) == (order[rows - 1], order[-1])
    assert widths == sorted(widths)


@pytest.mark.parametrize("repeats", [1, 3, 20])
def test_every_model_has_a_latency(model, data, repeats):
    measured = latencies({"one": model, "other": model}, {"one": data, "other": data}, repeats)
    assert list(measured) == ["one", "other"]
    assert all(len(times) == repeats and min(times) > 0 for times in measured.values())


def test_no_model_is_timed_right_after_another(model, data):
    """Its caches would be full of that one's weights."""
    called: list[str] = []
    models = {"one": model, "other": copy.deepcopy(model)}
    for name, each in models.items():
        each.register_forward_hook(lambda *_, name=name: called.append(name))
    latencies(models, dict.fromkeys(models, data), 3)
    assert called == ["one", "one", "other", "other"] * 6
