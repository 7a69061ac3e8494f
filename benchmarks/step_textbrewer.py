"""The side `textbrewer` of benchmark `step`: the package (airaria/TextBrewer), where it is installed.

Its GeneralDistiller trains as its `train` does; a step is an epoch of one batch to it, a turn of the
task's half an epoch of several. The models are those of transformers, as in its documentation.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.sides import synchronise
from benchmarks.step import SCHEDULED_STEPS, Settings, quiet, tokens
from benchmarks.step_task import TURN, examples, picked
from distill.layer_map import layer_map

if TYPE_CHECKING:
    from torch import Tensor

    from data_pipeline.tasks import Encoded

NOTE = (
    "TextBrewer by its GeneralDistiller, on models of transformers: teacher in eval mode and without a "
    "graph, student dropout 0.1, fp32, AdamW.\n"
    "It compares the same layers by hidden_mse, each by a projection of its own, and by attention_mse: "
    "attention probabilities where the others take scores, for its adaptors get what the models give, "
    "and these give no scores."
)
NOTE_OF_TASK = (
    "TextBrewer leaves batches to its user: here random ones, padded to their longest sentence, which is "
    "faster than the fixed length of its examples; its turns too are {turn} steps.\n"
    "Its intermediate stage has the matches above, its prediction stage the logits alone, for which its "
    "models make no attention maps."
)


def left_out() -> str:
    """Why it can't be measured, a line to print; empty where it can.

    Another process tries to import it: with it comes torch, and the parent must weigh nothing.
    """
    command = [sys.executable, "-c", "import textbrewer"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        return ""
    reason = (answer.stderr.strip().splitlines() or [f"exit {answer.returncode}"])[-1]
    return f"Left out: textbrewer ({reason}); to have it, pip install textbrewer"


# ------------------------------------------------------------------------------------- the two sides
def general(settings: Settings, folder: Path) -> Iterator[None]:
    """Steps of general distillation; the teacher lies in `folder`/teacher."""
    turns = ([named(*tokens(step, settings))] for step in count())
    return _train(build(settings, folder, "BertModel", matches(settings)), turns)


def task(settings: Settings, stage: str, folder: Path) -> Iterator[None]:
    """Turns of a stage of task distillation; the teacher lies in `folder`/teacher."""
    wanted = matches(settings) if stage == "intermediate" else []
    data = examples(settings)
    turns = (
        [padded(data, step, settings.batch) for step in range(turn * TURN, (turn + 1) * TURN)]
        for turn in count()
    )
    return _train(build(settings, folder, "BertForSequenceClassification", wanted), turns)


def _train(distiller: Any, turns: Iterable[list[dict[str, Tensor]]]) -> Iterator[None]:
    """Do what its `train` does, an epoch for each turn: begin once, then go on as often as asked."""
    import torch
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.AdamW(distiller.model_S.parameters(), lr=1e-4)
    schedule = {"num_warmup_steps": SCHEDULED_STEPS // 10, "num_training_steps": SCHEDULED_STEPS}
    with distiller:  # teacher in eval mode, student in training mode
        optimizer, scheduler, _ = distiller.initialize_training(
            optimizer, get_linear_schedule_with_warmup, schedule, None
        )
        yield

        for batches in turns:
            distiller.train_with_num_epochs(
                optimizer,
                scheduler,
                tqdm_disable=True,
                dataloader=batches,
                max_grad_norm=-1.0,
                num_epochs=1,
                callback=None,
                batch_postprocessor=None,
            )
            synchronise()
            yield


def build(settings: Settings, folder: Path, kind: str, wanted: list[dict[str, Any]]) -> Any:
    """A GeneralDistiller of two models of a kind of transformers; without matches it compares logits."""
    import textbrewer
    import torch
    import transformers

    quiet()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    outputs: dict[str, Any] = {}
    if wanted:  # only eager attention gives its maps
        outputs = {
            "output_hidden_states": True,
            "output_attentions": True,
            "attn_implementation": "eager",
        }
    model = getattr(transformers, kind)
    teacher = model.from_pretrained(folder / "teacher", **outputs)
    config = transformers.BertConfig(vocab_size=settings.vocabulary, **settings.student.named(), **outputs)
    adaptor = _features if wanted else _logits
    return textbrewer.GeneralDistiller(
        # A checkpoint would be no part of a step: none is asked for.
        textbrewer.TrainingConfig(device=device, output_dir=str(folder / "saved"), ckpt_frequency=0),
        textbrewer.DistillationConfig(temperature=1, intermediate_matches=wanted),
        teacher.to(device),
        model(config).to(device),
        adaptor,
        adaptor,
    )


def matches(settings: Settings) -> list[dict[str, Any]]:
    """What it is to compare, in its words: the layers that the original and ours compare."""
    pairs = layer_map("uniform", settings.student.layers, settings.teacher.layers)
    widths = (settings.student.hidden_size, settings.teacher.hidden_size)
    hidden = [_match("hidden", student, teacher, proj=["linear", *widths]) for student, teacher in pairs]
    # Maps count from 0 and the embedding has none.
    return hidden + [_match("attention", student - 1, teacher - 1) for student, teacher in pairs if student]


def _match(feature: str, student: int, teacher: int, **more: Any) -> dict[str, Any]:
    layers = {"layer_S": student, "layer_T": teacher}
    return {**layers, "feature": feature, "loss": f"{feature}_mse", "weight": 1, **more}


def _features(batch: dict[str, Tensor], outputs: Any) -> dict[str, Any]:
    """An adaptor where features are compared; by the mask padding doesn't count."""
    return {
        "hidden": outputs.hidden_states,
        "attention": outputs.attentions,
        "inputs_mask": batch["attention_mask"],
    }


def _logits(batch: dict[str, Tensor], outputs: Any) -> dict[str, Any]:
    """An adaptor where logits are compared."""
    return {"logits": outputs.logits}


# ---------------------------------------------------------------------------------------- batches
def named(ids: Tensor, mask: Tensor, segments: Tensor) -> dict[str, Tensor]:
    """A batch as models of transformers take it."""
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


def padded(data: Encoded, step: int, batch: int) -> dict[str, Tensor]:
    """The original's sentences of a step, padded to the longest as DataCollatorWithPadding does."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence(picked(data, step, batch), batch_first=True)
    return named(ids, (ids != 0).long(), torch.zeros_like(ids))  # no sentence has the id 0
