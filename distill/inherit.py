"""A student's first weights, taken from its teacher's: layers, and of wider ones a choice of their units.

Layers are chosen evenly, as for DistilBERT (Sanh et al. 2019, arXiv:1910.01108, section 3); of their units
every k-th, the same in every matrix (Xu et al. 2023, arXiv:2311.18823, uniform element selection).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from data_pipeline.model_folder import model_folder
from distill.layer_map import layer_map


def inherit(student: PreTrainedModel, teacher: str) -> None:
    """Give a bare encoder the weights of the teacher in a folder, in place.

    Raises ValueError where the student has a parameter that the teacher lacks, or a larger one.
    """
    source = AutoModel.from_pretrained(model_folder(teacher), dtype=torch.float32)
    chosen = layer_map("uniform", student.config.num_hidden_layers, source.config.num_hidden_layers)
    own_names, their_names = _layer_names(student), _layer_names(source)
    names = {own: their_names[t - 1] for own, (_, t) in zip(own_names, chosen[1:], strict=False)}
    weights, taken = source.state_dict(), {}
    for name, own in student.state_dict().items():
        layer = next((prefix for prefix in names if name.startswith(prefix)), "")
        wanted = names.get(layer, "") + name.removeprefix(layer)
        if wanted not in weights:
            raise ValueError(f"student.start: the teacher {teacher} has no {wanted}; give random")
        taken[name] = every_kth(weights[wanted], own.shape, name)
    student.load_state_dict(taken)


def every_kth(weight: Tensor, shape: torch.Size, name: str = "the weight") -> Tensor:
    """Of each dimension as many entries as `shape` has, evenly spaced and in order."""
    if weight.dim() != len(shape) or any(n > m for n, m in zip(shape, weight.shape, strict=True)):
        raise ValueError(
            f"student.start: {name} is {tuple(shape)} and the teacher's is {tuple(weight.shape)}; give a "
            "student that is no larger in any direction, or random"
        )
    for dim, (size, larger) in enumerate(zip(shape, weight.shape, strict=True)):
        weight = weight.index_select(dim, torch.arange(size) * larger // size)
    return weight


def _layer_names(model: PreTrainedModel) -> list[str]:
    """Prefixes of the layers' parameters; none where layers share theirs (ALBERT)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return [f"{name}.{number}." for number in range(len(module))]
    return []
