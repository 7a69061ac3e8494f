"""Job `label`: a teacher's logits for every file of a task, written once for many students to learn from.

The folder RUN/outputs is given to `task --teacher.outputs`. distill/outputs.py describes it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from data_pipeline.progress import Progress
from data_pipeline.settings import TaskConfig
from data_pipeline.tasks import Encoded, encode, label_set, read_examples, read_targets
from data_pipeline.vocabulary import load_vocabulary
from distill.encoders import Teacher
from distill.engine import barrier, rank, start_processes, sum_over_ranks, world_size
from distill.measure import dev_scores, predict
from distill.model_facts import model_config, own_labels
from distill.outputs import Split, splits
from distill.preemption import Stopped, asked
from distill.settings import LabelConfig, TeacherConfig


def run(config: LabelConfig, folder: Path) -> dict:
    """Write RUN/outputs; returns the teacher's scores on dev and the number of examples."""
    device = start_processes()
    outputs = folder / "outputs"
    write_outputs(outputs, config.teacher, config.task, device, config.batch_size, config.rows_per_file)
    found = splits(outputs, config.task, config.teacher)
    scores = stored_scores(found, config.teacher, config.task)
    report_scores(scores, config.task, _labels(config.teacher, config.task), found["dev"].precision)
    return {
        "teacher": scores,
        "examples": {name: split.rows for name, split in found.items()},
        "outputs": str(outputs),
        "processes": world_size(),
        "device": device.type,
    }


def write_outputs(
    outputs: Path,
    teacher: TeacherConfig,
    task: TaskConfig,
    device: torch.device,
    batch_size: int = 64,
    rows_per_file: int = 8192,
) -> None:
    """Write the logits of every split that is not whole yet, from where a killed run stopped."""
    left = {name: split for name, split in splits(outputs, task, teacher).items() if not split.is_whole()}
    barrier()  # every rank has looked before one writes
    if not left:
        return
    configs = [TeacherConfig(path, precision=teacher.precision) for path in teacher.members]
    members = [Teacher(member, device, kept=True) for member in configs]
    for name, split in left.items():
        if rank() == 0:
            split.begin([member.precision for member in members])
        barrier()
        examples = read_examples(task.files[name], task)
        data = [encode(examples, task, load_vocabulary(path)) for path in teacher.members]
        begins = list(range(0, split.rows, rows_per_file))
        missing = [begin for begin in begins if not split.part(begin).is_file()]
        start = len(begins) - len(missing)
        with Progress(f"teacher on {name}", len(begins), start, "file", rank() == 0) as progress:
            for begin in missing:
                if sum_over_ranks(torch.tensor(float(asked()), device=device)):  # all end together
                    raise Stopped(f"teacher on {name}: stopped between two files, as asked")
                rows = [each.rows(begin, begin + rows_per_file) for each in data]
                logits = _average(members, rows, list(teacher.members.values()), batch_size)
                if rank() == 0:
                    split.write(begin, logits)
                progress.advance()
        if rank() == 0:
            split.finish()
        barrier()


def _labels(teacher: TeacherConfig, task: TaskConfig) -> list[str]:
    return label_set(task, own_labels(model_config(teacher.path, "teacher")))


def _average(members: list[Teacher], data: list[Encoded], weights: list[float], size: int) -> np.ndarray:
    """The members' weighted mean logits, each of the rows as it reads them."""
    total = sum(
        weight * predict(member.model, rows, size).numpy()
        for weight, member, rows in zip(weights, members, data, strict=True)
    )
    return np.asarray(total) / sum(weights)


def stored_scores(found: dict[str, Split], teacher: TeacherConfig, task: TaskConfig) -> dict[str, float]:
    """What the stored logits are worth on dev and the files measured beside it."""
    labels = _labels(teacher, task)
    dev = [name for name in found if name != "train"]
    logits = {name: torch.from_numpy(found[name].read()) for name in dev}
    return dev_scores(logits, {name: read_targets(task.files[name], task, labels) for name in dev}, task)


def report_scores(scores: dict[str, float], task: TaskConfig, labels: list[str], precision: str) -> None:
    """Print the teacher's scores on dev, and its precision if not fp32; warn where it is hardly better than
    always giving the most frequent label.
    """
    if rank():
        return
    floor = 0.0
    if task.selection == "accuracy" and task.kind == "classification":
        targets = read_targets(task.dev, task, labels)
        floor = float(np.bincount(targets).max() / len(targets))
    shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
    how = f" (in {precision})" if precision != "fp32" else ""
    print(f"teacher on dev{how}: {shown}", file=sys.stderr)
    if scores[task.selection] < floor + 0.1 * (1 - floor):
        always = f" ({floor:.2f} comes from one class alone)" if floor else ""
        order = ", and are its labels in this order" if labels else ""
        print(
            f"warning: the teacher is poor{always}: is it fine-tuned on this task{order}?",
            file=sys.stderr,
        )
