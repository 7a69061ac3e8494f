"""Exported models in onnxruntime. Imports no torch: what is exported answers without it.

DIR/onnx/model.onnx        fp32                    DIR/config.json and tokenizer files: what both read
DIR/onnx/model_int8.onnx   dynamically quantised   DIR/model.safetensors: the same model for transformers
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

FILES = {"onnx": "onnx/model.onnx", "onnx_int8": "onnx/model_int8.onnx"}
INPUTS = {"ids": "input_ids", "mask": "attention_mask", "segments": "token_type_ids"}


def refuse_missing(*packages: str) -> None:
    """Refuse to go on without these packages. Raises ValueError that says how to get them."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} not installed: pip install -e '.[export]' in Distillery's folder"
        )


def open_session(file: Path, threads: int) -> Any:
    """A session on the CPU whose threads sleep while it waits, so that others on the machine can work."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def run_session(session: Any, padded: dict[str, np.ndarray]) -> np.ndarray:
    """Logits (batch, outputs) of ids, mask and segments (batch, length), int64, as Encoded.padded gives."""
    wanted = {entry.name for entry in session.get_inputs()}
    inputs = {name: padded[part] for part, name in INPUTS.items() if name in wanted}
    return session.run(None, inputs)[0]
