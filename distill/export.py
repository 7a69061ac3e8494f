"""Job `export`: a trained model to a folder that runs anywhere, with ONNX beside its weights.

RUN/model/                       loads in transformers, with tokenizer files and README.md, its model card
RUN/model/onnx/model.onnx        the same in fp32 for onnxruntime, any batch size and length
RUN/model/onnx/model_int8.onnx   the same with int8 weights
RUN/model/model.pt2              the same as a program of torch.export, where it is asked for
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import HfApi
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from data_pipeline.progress import Progress
from data_pipeline.settings import TaskConfig
from data_pipeline.tasks import encode_dev, label_set
from data_pipeline.vocabulary import copy_tokenizer, load_vocabulary
from data_pipeline.whole import replace_folder, write_whole
from distill.encoders import load_classifier
from distill.evaluate import add_latency, summarise
from distill.measure import agreement, dev_scores, predict, size
from distill.model_card import write_card
from distill.model_facts import model_config, own_labels
from distill.onnx_graph import (
    largest_difference,
    program_difference,
    quantise_graph,
    random_answers,
    write_graph,
    write_program,
)
from distill.onnx_runtime import FILES, open_session
from distill.settings import ExportConfig

TORCH = "torch fp32"
PROGRAM = "model.pt2"
ALIKE = 0.995  # share of the labels that int8 should keep: below it a warning is printed
NAMES = {"onnx": "onnxruntime fp32", "onnx_int8": "onnxruntime int8"}


class OnnxModel:
    """An ONNX file where a Hugging Face model is expected: named tensors in, `.logits` out."""

    device = torch.device("cpu")

    def __init__(self, file: Path, config: PretrainedConfig):
        self.config = config
        self.size = file.stat().st_size
        self.session = open_session(file, torch.get_num_threads())

    def __call__(self, **inputs: Tensor) -> SimpleNamespace:
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        return SimpleNamespace(logits=torch.from_numpy(self.session.run(None, given)[0]))


def run(config: ExportConfig, folder: Path) -> dict:
    """Write RUN/model; returns its files' sizes and, where there is a task, a row for each form of it."""
    model = load_classifier(config.model, config.classes)
    partial = folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "onnx").mkdir(parents=True)
    model.save_pretrained(partial)
    copy_tokenizer(config.model, partial)
    with Progress("export", 2, unit="part") as progress:
        difference = write_files(model, partial, config)
        forms = onnx_models(partial, model.config)
        progress.describe("files written")
        progress.advance()
        rows = measure({TORCH: model, **forms}, config.task, config) if config.task else []
        alike = int8_agreement(model, partial, rows, config)
        progress.describe("files measured")
        progress.advance()
    write_whole(partial / "README.md", write_card(config, model.config, rows, folder))
    replace_folder(partial, folder / "model")
    if config.push_to_hub:
        upload(folder / "model", config.push_to_hub)
    sizes = {name: form.size for name, form in forms.items()}
    return {"rows": rows, "bytes": sizes, "largest_difference": difference, "int8_agreement": alike}


def upload(folder: Path, name: str) -> None:
    """Upload a folder to the hub. Raises ValueError where the hub or the network refuses it."""
    try:
        hub = HfApi()
        hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by Distillery")
    except Exception as error:  # of the hub's answers, and of its network client
        raise ValueError(f"push_to_hub: {name} was not uploaded ({error}); {folder} is complete") from error


def write_files(model: PreTrainedModel, folder: Path, config: ExportConfig) -> float:
    """Write the ONNX files; returns how far fp32 logits differ, in units of what is tolerated.

    Raises RuntimeError, with no file left, where onnxruntime answers otherwise than torch.
    """
    plain = folder / FILES["onnx"]
    write_graph(model, plain, config.opset)
    difference = largest_difference(model, plain, config.seed)
    if difference > 1:
        plain.unlink()
        raise RuntimeError(
            f"{config.model}: onnxruntime's logits differ from torch's by {difference:.3g} times the limit"
        )
    if config.int8:
        quantise_graph(plain, folder / FILES["onnx_int8"])
    if config.torch_export:
        write_program(model, folder / PROGRAM)
        if (away := program_difference(model, folder / PROGRAM, config.seed)) > 1:
            raise RuntimeError(
                f"{config.model}: the program's logits are {away:.3g} times the limit away from torch's"
            )
    return difference


def int8_agreement(
    model: PreTrainedModel, folder: Path, rows: list[dict[str, Any]], config: ExportConfig
) -> float | None:
    """Share of texts that the int8 file labels as the model does: of dev's, else of random rows.

    Warns where it is low. None without such a file, and for a regression.
    """
    file = folder / FILES["onnx_int8"]
    if not file.is_file():
        return None
    if rows:
        texts, share = "texts of dev", rows[-1]["agreement"]  # the last form is int8
        advice = f"where its score is too low use {FILES['onnx']} (predict --runtime onnx)"
    else:
        ours, theirs = map(torch.from_numpy, random_answers(model, file, config.seed))
        texts, share = f"{len(ours)} rows of random tokens", agreement(ours, theirs, several(model.config))
        advice = "give --task to see what that costs on texts"
    if share is not None and share < ALIKE:
        said = f"{FILES['onnx_int8']} labels {100 * share:.1f} % of the {texts} as the model does"
        print(f"warning: {said}; {advice}", file=sys.stderr)
    return share


def several(config: PretrainedConfig) -> bool:
    """Whether a model gives any number of labels."""
    return config.problem_type == "multi_label_classification"


def onnx_models(folder: Path, config: PretrainedConfig) -> dict[str, OnnxModel]:
    """The ONNX files in a folder, by the names of their rows."""
    files = {NAMES[form]: folder / file for form, file in FILES.items()}
    return {name: OnnxModel(file, config) for name, file in files.items() if file.is_file()}


def measure(forms: dict[str, Any], task: TaskConfig, config: ExportConfig) -> list[dict[str, Any]]:
    """A row for torch, the first, and for each ONNX file: scores and labels on dev, size, latency."""
    labels = label_set(task, own_labels(model_config(config.model, "model", config.classes)))
    dev = encode_dev(task, load_vocabulary(config.model), labels)
    targets = {name: part.labels for name, part in dev.items()}
    rows = []
    for name, form in forms.items():
        logits = {split: predict(form, part, config.batch_size) for split, part in dev.items()}
        found = summarise([dev_scores(logits, targets, task)], task.selection)
        rows.append({"name": name, **found, **size(forms[TORCH])})
        if name == TORCH:
            plain = logits["dev"]
        else:
            rows[-1]["megabytes"] = round(form.size / 1e6, 1)
            rows[-1]["agreement"] = agreement(plain, logits["dev"], several(form.config))
    same = dict.fromkeys(forms, dev["dev"])
    add_latency(rows, forms, same, TORCH, config.latency_batches, config.latency_repeats)
    return rows
