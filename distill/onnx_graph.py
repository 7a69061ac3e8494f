"""A classifier to an ONNX graph or a program of torch.export, proof that it answers alike, quantisation.

torch's exporter writes nearly all of it. Two things it can't do are done here: an LSTM over padded
sequences, which ONNX has as one operator with the lengths as an input, and what onnxruntime's quantiser
stumbles over.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill.encoders import Batch, model_inputs
from distill.model_facts import positions
from distill.onnx_runtime import open_session, run_session
from distill.word_students import PaddedLstm, WordModelForSequenceClassification

OPSET = 20
TOLERANCE = 1e-4  # of fp32 logits, relative to the largest and absolute
# (batch, longest sequence): one token, one row, a length beyond what was traced, many rows.
SHAPES = ((1, 1), (1, 9), (2, 7), (3, 2), (8, 12), (5, 33), (2, 128))


class _Logits(nn.Module):
    """A model that takes its inputs by their names in ONNX and returns its logits alone."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **segments).logits


class _OnnxLstm(nn.Module):
    """A PaddedLstm as ONNX's own operator; runs in an exported graph only."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor

    def __init__(self, padded: PaddedLstm):
        super().__init__()
        ways = padded.onward, padded.back
        self.size = padded.onward.hidden_size
        parts = [{name: _onnx_gates(value) for name, value in way.state_dict().items()} for way in ways]
        for name in ("weight_ih", "weight_hh"):  # (2, 4 size, width)
            self.register_buffer(name, torch.stack([part[f"{name}_l0"] for part in parts]))
        biases = [torch.cat([part["bias_ih_l0"], part["bias_hh_l0"]]) for part in parts]
        self.register_buffer("bias", torch.stack(biases))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        batch, length = mask.shape
        outputs, last = torch.onnx.ops.symbolic_multi_out(
            "LSTM",
            (x.transpose(0, 1), self.weight_ih, self.weight_hh, self.bias, mask.sum(1).int()),
            {"hidden_size": self.size, "direction": "bidirectional"},
            dtypes=(x.dtype, x.dtype),
            shapes=((length, 2, batch, self.size), (2, batch, self.size)),
            version=14,
        )
        return outputs.permute(2, 0, 1, 3).flatten(2), torch.cat([last[0], last[1]], dim=-1)


def _onnx_gates(weights: Tensor) -> Tensor:
    """Rows of torch's gates (in, forget, cell, out) in ONNX's order (in, out, forget, cell)."""
    gates = weights.detach().chunk(4)
    return torch.cat([gates[number] for number in (0, 3, 1, 2)])


def write_graph(model: PreTrainedModel, file: Path, opset: int | None) -> None:
    """Write a model in eval mode, on the CPU in fp32, with any batch size and length as ONNX."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, PaddedLstm):
                setattr(module, name, _OnnxLstm(child))
    example = model_inputs(model, random_batch(model, 2, 7, np.random.default_rng(0)))
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _Logits(model).eval(),
            kwargs=example,
            dynamo=True,
            input_names=list(example),
            output_names=["logits"],
            opset_version=opset or OPSET,
            dynamic_shapes=dict.fromkeys(example, axes),
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    del graph.graph.value_info[:]  # the quantiser transposes weights and would meet their old shapes
    onnx.save(graph, file)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own remarks: of torchvision, and of its insides' deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def quantise_graph(source: Path, target: Path) -> None:
    """Write a graph with int8 weights, a scale for each channel; activations are scaled as they come.

    Weights take 7 of the 8 bits: on CPUs without VNNI the sums of 8-bit products would saturate.
    Convolutions stay in fp32, for which onnxruntime has no fast int8 form on CPUs; so does the LSTM of a
    pair, whose two operators share weights that the quantiser would scale twice.
    """
    kinds = [node.op_type for node in onnx.load(source, load_external_data=False).graph.node]
    lstm = ["LSTM"] if kinds.count("LSTM") == 1 else []
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it recommends a preparation that the exporter has made
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm", "Gather", *lstm],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    finally:
        logging.root.setLevel(level)


def random_batch(model: PreTrainedModel, rows: int, length: int, rng: np.random.Generator) -> Batch:
    """Rows of random ids and lengths, the first as long as said; the later part is the second segment.

    Models of whole words get texts without a word too.
    """
    least = 0 if isinstance(model, WordModelForSequenceClassification) else 1
    lengths = np.r_[length, rng.integers(least, length + 1, rows - 1)]
    places = np.arange(length)
    mask = (places < lengths[:, None]).astype(np.int64)
    segments = mask * (places >= lengths[:, None] // 2)
    pad = getattr(model.config, "pad_token_id", None) or 0
    ids = np.where(mask == 1, rng.integers(0, model.config.vocab_size, (rows, length)), pad)
    return Batch(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(segments))


def write_program(model: PreTrainedModel, file: Path) -> None:
    """Write a transformer as a program of torch.export, with any batch size and length from 2."""
    example = model_inputs(model, random_batch(model, 2, 7, np.random.default_rng(0)))
    axes = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    sizes = dict.fromkeys(example, axes)
    with torch.no_grad(), _quiet():
        program = torch.export.export(_Logits(model).eval(), (), kwargs=example, dynamic_shapes=sizes)
        torch.export.save(program, file)


def program_difference(model: PreTrainedModel, file: Path, seed: int) -> float:
    """As `largest_difference`, of a program of torch.export."""
    program = torch.export.load(file).module()
    return _largest(model, lambda batch: program(**model_inputs(model, batch)).numpy(), seed)


def largest_difference(model: PreTrainedModel, file: Path, seed: int) -> float:
    """How far onnxruntime's logits are from torch's at most, over batches of many shapes and paddings.

    In units of what is tolerated: above 1 the graph is wrong.
    """
    return _largest(model, _of_file(file), seed)


def random_answers(model: PreTrainedModel, file: Path, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (rows, outputs) of torch and of onnxruntime for the same batches."""
    ours, theirs = zip(*_answers(model, _of_file(file), seed), strict=True)
    return np.concatenate(ours), np.concatenate(theirs)


def _of_file(file: Path) -> Callable[[Batch], np.ndarray]:
    session = open_session(file, torch.get_num_threads())

    def answer(batch: Batch) -> np.ndarray:
        return run_session(session, {name: part.numpy() for name, part in batch.parts().items()})

    return answer


def _largest(model: PreTrainedModel, answer: Callable[[Batch], np.ndarray], seed: int) -> float:
    worst = 0.0
    for ours, theirs in _answers(model, answer, seed):
        allowed = TOLERANCE * (1 + np.abs(ours).max())
        difference = float(np.abs(ours - theirs).max() / allowed)
        worst = max(worst, difference if np.isfinite(difference) else np.inf)
    return worst


@torch.no_grad()
def _answers(
    model: PreTrainedModel, answer: Callable[[Batch], np.ndarray], seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits (batch, outputs) of the model and of its other form, for random batches of all SHAPES."""
    rng = np.random.default_rng(seed)
    longest = positions(model.config.to_dict())
    for rows, length in SHAPES:
        batch = random_batch(model, rows, min(length, longest), rng)
        yield model(**model_inputs(model, batch)).logits.numpy(), answer(batch)
