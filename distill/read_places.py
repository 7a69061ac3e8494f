"""The end of an encoder at the places that are read, and nowhere else.

A classifier reads each sequence's first token, a masked language model's head the masked ones. The last
layer's attention needs all the others; what follows it, three quarters of the layer's products, and the
head's logits do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

FAMILIES = ("Bert", "Roberta", "Electra", "XLMRoberta", "Camembert")  # their layers are alike


@contextmanager
def reading(model: PreTrainedModel, places: Tensor | None, hidden: bool = False) -> Iterator[None]:
    """Let the forward passes inside compute only what is read.

    Args:
        model: An encoder; what is saved there depends on its family.
        places: What a head reads, as indices into the flattened batch, (places,): logits become
            (1, places, ...). None: what the model's own head reads.
        hidden: The hidden states of every token are wanted too.
    """
    # A model of no known family: it may read other tokens than the first, or be no module but an ONNX file.
    unknown = places is None and not is_part(model, "ForSequenceClassification")
    end = None if hidden or unknown else _end(model)
    if places is None and end is None:
        yield
        return

    def chosen(states: Tensor) -> Tensor:
        # A linear layer would multiply rows that lie apart one by one, by a copy of its weight each.
        return states[:, :1].contiguous() if places is None else states.flatten(0, 1)[places][None]

    def of_both(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(map(chosen, inputs))

    def of_output(module: nn.Module, inputs: object, output: ModelOutput) -> ModelOutput:
        output["last_hidden_state"] = chosen(output["last_hidden_state"])
        return output

    if end is None:
        handle = model.base_model.register_forward_hook(of_output)
    else:
        handle = end.register_forward_pre_hook(of_both)
    try:
        yield
    finally:
        handle.remove()


def _end(model: PreTrainedModel) -> nn.Module | None:
    """The module right behind the last layer's attention: its inputs are attention's output and the layer's
    input. None where the family is not known.
    """
    body = model.base_model
    if not is_part(body, "Model") or body.config.chunk_size_feed_forward:
        return None
    return body.encoder.layer[-1].attention.output


def is_part(module: nn.Module, part: str) -> bool:
    """Whether a module is that part of one of FAMILIES, such as BertModel, as transformers defines it."""
    kind = type(module)
    known = kind.__module__.startswith("transformers.models.")
    return known and kind.__name__ in {f"{family}{part}" for family in FAMILIES}
