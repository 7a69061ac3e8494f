"""What is read from a model folder's files: its outputs, its labels, its weights, and what is damaged."""

import json
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipeline.settings import TaskConfig
from distill.model_facts import check_weights, fp32_bytes, model_config, outputs_of, own_labels
from distill.task_checks import kept_labels

HEAD = {"architectures": ["BertForSequenceClassification"]}


def folder_of(folder: Path, **config: object) -> str:
    (folder / "config.json").write_text(
        json.dumps({"num_hidden_layers": 1, "num_attention_heads": 1, **config})
    )
    return str(folder)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"id2label": ["a", "b"]}, "id2label must name each number's label"),
        ({"id2label": {"a": "b"}}, "id2label must name each number's label"),
        ({"id2label": {"0": 1}}, "id2label must name each number's label"),
        ({"hidden_size": 0}, "hidden_size is 0; it must be 1 or more"),
        ({"hidden_size": "8"}, "hidden_size is '8'; it must be 1 or more"),
        ({"vocab_size": True}, "vocab_size is True; it must be 1 or more"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers is 1.5; it must be 1 or more"),
    ],
)
def test_a_config_with_impossible_values_is_refused(tmp_path, config, says):
    with pytest.raises(ValueError, match=f"^teacher: .*config.json: {says}"):
        model_config(folder_of(tmp_path, **config), "teacher")
    assert model_config(folder_of(tmp_path, id2label=None, hidden_size=1), "teacher")["hidden_size"] == 1


@pytest.mark.parametrize("missing", ["num_hidden_layers", "num_attention_heads"])
def test_only_an_encoder_needs_layers_and_heads(tmp_path, missing):
    config = {"num_hidden_layers": 1, "num_attention_heads": 1, "architectures": ["Own"]}
    del config[missing]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"without {missing}; give an encoder"):
        model_config(str(tmp_path), "model")
    assert model_config(str(tmp_path), "model", ["my_module.Own"]) == config
    assert model_config(str(tmp_path), "model", any_kind=True) == config
    (tmp_path / "config.json").write_text('{"model_type": "distillery_words"}')
    assert model_config(str(tmp_path), "model")


def test_outputs_are_those_of_a_classification_head():
    labels = {str(number): f"label {number}" for number in range(11)}
    assert outputs_of({**HEAD, "id2label": labels}) == 11
    assert outputs_of(HEAD) == 2
    assert outputs_of({"architectures": ["BertForMaskedLM"], "id2label": labels}) is None
    assert outputs_of({"architectures": ["Own"], "id2label": labels}, ["my_module.Own"]) == 11
    assert own_labels({"id2label": labels}) == [*labels.values()]


@pytest.mark.parametrize(
    ("own", "labels", "kind", "kept"),
    [
        (["positive", "negative"], None, "classification", True),
        (["positive", "other", "negative"], None, "classification", True),  # one is not in the data
        (["positive", "other", "negative"], ["negative", "positive"], "classification", False),
        (["positive", "other"], None, "classification", False),
        (["positive", "negative"], None, "regression", False),
    ],
)
def test_a_model_that_is_trained_on_keeps_the_labels_that_it_has(tiny_task, own, labels, kind, kept):
    train, dev = (str(tiny_task / f"{split}.tsv") for split in ("train", "dev"))
    model = {**HEAD, "id2label": {str(number): label for number, label in enumerate(own)}}
    task = TaskConfig(train, dev, kind=kind, labels=labels)
    assert kept_labels(task, model) == (own if kept else None)
    assert kept_labels(task, HEAD) is None


def test_weights_take_as_many_bytes_as_they_have_numbers(tmp_path):
    for name, size in (("model-1.safetensors", 60), ("model-2.safetensors", 40), ("other.bin", 500)):
        (tmp_path / name).write_bytes(bytes(size))
    assert fp32_bytes(str(tmp_path), {}) == fp32_bytes(str(tmp_path), {"dtype": "float32"}) == 100
    assert fp32_bytes(str(tmp_path), {"dtype": "bfloat16"}) == 200
    assert fp32_bytes(str(tmp_path), {"torch_dtype": "float16"}) == 200


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_list_of_weights_is_named(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"model.safetensors.index.json is damaged; copy the model again"):
        check_weights("model", str(tmp_path))


def test_pickled_weights_are_taken_whole_and_beside_none_of_safetensors(tmp_path):
    with ZipFile(tmp_path / "pytorch_model-1.bin", "w") as archive:
        archive.writestr("data.pkl", "x")
    (tmp_path / "pytorch_model-2.bin").write_bytes(b"\x80\x02 as torch wrote before 1.6")
    check_weights("model", str(tmp_path))
    (tmp_path / "pytorch_model-3.bin").write_bytes((tmp_path / "pytorch_model-1.bin").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"pytorch_model-3.bin is no whole file of torch's"):
        check_weights("model", str(tmp_path))
    save_file({"weight": np.zeros(2)}, tmp_path / "model.safetensors")
    check_weights("model", str(tmp_path))  # which is what is loaded
