"""Job `task`: two-step task distillation (Jiao et al. 2020, TinyBERT, section 3.2).

First the student's attention scores and hidden states follow the fine-tuned teacher's, then its
outputs do. The teacher's own dev score is measured before anything is trained.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from data_pipeline.tasks import Encoded, encode_split, label_set
from data_pipeline.vocabulary import load_vocabulary
from distill.attention import Collector, install
from distill.checks import micro_batch_size, model_config, own_labels
from distill.encoders import (
    Teacher,
    build_classifier,
    load_projections,
    read_config,
    student_shape,
)
from distill.engine import rank, start_processes, world_size
from distill.general import save_student
from distill.layer_map import layer_map
from distill.measure import predict, task_metrics
from distill.objective import Objective
from distill.settings import StageConfig, TaskDistillConfig
from distill.sources import TaskSource
from distill.trainer import Trainer


def run(config: TaskDistillConfig, folder: Path) -> dict:
    """Train both steps and write `folder`/student, the best on dev; returns the summary's figures."""
    device = start_processes()
    torch.manual_seed(config.seed)
    task = config.task
    vocabulary = load_vocabulary(config.teacher.path)
    labels = label_set(task, own_labels(model_config(config.teacher.path, "teacher")))
    train = encode_split(task.train, task, vocabulary, labels)
    dev = encode_split(task.dev, task, vocabulary, labels)
    teacher = Teacher(config.teacher, device)

    def measure(model: PreTrainedModel) -> dict[str, float]:
        return task_metrics(predict(model, dev), dev.labels, task.selection)

    teacher_scores = _teacher_gate(teacher, measure, task.selection, dev)
    shape = student_shape(config.student, read_config(config.teacher.path))
    student = build_classifier(config.student.path, shape, labels)
    stages = _Stages(config, folder, teacher, student, install(student), train, measure)
    steps = stages.run("intermediate", config.intermediate)
    steps += stages.run("prediction", config.prediction)
    return {
        "steps": steps,
        "best": stages.best,
        "teacher": teacher_scores,
        "processes": world_size(),
        "device": device.type,
    }


def _teacher_gate(
    teacher: Teacher,
    measure: Callable[[PreTrainedModel], dict[str, float]],
    selection: str,
    dev: Encoded,
) -> dict[str, float]:
    """Measure the teacher; warn where it is hardly better than always saying one thing."""
    live = teacher.model.training  # a recipe may leave dropout on; a measurement never does
    teacher.model.eval()
    scores = measure(teacher.model)
    teacher.model.train(live)
    classes = teacher.model.config.num_labels
    floor = 0.0
    if selection == "accuracy" and classes > 1:
        floor = max((dev.labels == label).mean() for label in range(classes))
    if rank() == 0:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        print(f"teacher on dev: {shown}", file=sys.stderr)
        if scores[selection] < floor + 0.1:
            print(
                f"warning: the teacher is poor ({floor:.2f} comes from one class alone): is it "
                "fine-tuned on this task, and are its labels in this order?",
                file=sys.stderr,
            )
    return scores


class _Stages:
    """Runs the stages one after another on the same student."""

    def __init__(
        self,
        config: TaskDistillConfig,
        folder: Path,
        teacher: Teacher,
        student: PreTrainedModel,
        collector: Collector,
        train: Encoded,
        measure: Callable[[PreTrainedModel], dict[str, float]],
    ):
        self.config, self.folder, self.teacher, self.train = config, folder, teacher, train
        self.student, self.collector, self.measure = student, collector, measure
        self.best: dict[str, float] = {}
        self.random = torch.get_rng_state()

    def run(self, name: str, stage: StageConfig) -> int:
        """Run one stage; returns its steps."""
        if stage.epochs == 0:
            return 0
        config = self.config
        teacher_config = self.teacher.model.config
        torch.set_rng_state(self.random)  # new projections are the same after a resume
        objective = Objective(
            self.student,
            self.collector,
            stage.objective,
            layer_map(
                stage.objective.layer_map,
                self.student.config.num_hidden_layers,
                teacher_config.num_hidden_layers,
            ),
            teacher_config.hidden_size,
        )
        load_projections(config.student.path, objective.projections)
        micro = micro_batch_size(stage.batch_size, config.engine, world_size())
        answers = stage.objective.logits or stage.objective.labels
        trainer = Trainer(
            name=name,
            objective=objective,
            teacher=self.teacher,
            source=TaskSource(self.train, stage.batch_size, micro, config.seed, rank(), world_size()),
            stage=stage,
            engine_config=config.engine,
            record=config.record,
            seed=config.seed,
            folder=self.folder,
            evaluate=(lambda: self.measure(self.student)) if answers else None,
            on_best=lambda: save_student(trainer, self.folder / "student", config.teacher.path),
            selection=config.task.selection,
        )
        best = trainer.fit()
        self.best = best or self.best
        is_last = name == "prediction" or config.prediction.epochs == 0
        if is_last and not answers:  # on a resume, an earlier step must not replace a later one's best
            save_student(trainer, self.folder / "student", config.teacher.path)
        trainer.engine.close()
        return trainer.total
