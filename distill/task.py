"""Job `task`: two-step task distillation (Jiao et al. 2020, TinyBERT, section 3.2).

First the student's attention scores and hidden states follow the fine-tuned teacher's, then its
outputs do. A student of whole words has no such layers: it takes the second step alone. The teacher's
own dev score is measured before anything is trained.

Where the teacher reads other tokens than the student, or is an ensemble, its logits are computed
first (RUN/outputs), or taken from a label run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from data_pipeline.tasks import Encoded, encode_dev, encode_split, label_set
from data_pipeline.vocabulary import load_vocabulary
from distill.custom import load
from distill.encoders import StoredTeacher, Teacher, read_config, saved_projections
from distill.engine import rank, start_processes, world_size
from distill.general import save_student, start_projections
from distill.label import report_scores, stored_scores, write_outputs
from distill.layer_map import layer_map
from distill.measure import measure_dev
from distill.model_facts import model_config, own_labels
from distill.objective import Objective
from distill.outputs import splits
from distill.part_checks import compares_answers, compares_layers, micro_batch_size, runs_beside, stages_of
from distill.settings import StageConfig, TaskDistillConfig
from distill.sources import TaskSource
from distill.student import build_student
from distill.trainer import OnMeasure, Trainer


def run(config: TaskDistillConfig, folder: Path, on_measure: OnMeasure | None = None) -> dict:
    """Train both steps and write `folder`/student, the best on dev; returns the summary's figures.

    `on_measure` is told of every measurement, with the share of all training that is done.
    """
    device = start_processes()
    torch.manual_seed(config.seed)
    for stage in stages_of(config).values():  # a mistake in a later stage's terms ends the run now
        for term in stage.objective.custom:
            load("objective.custom", term)
    task = config.task
    labels = label_set(task, own_labels(model_config(config.teacher.path, "teacher")))
    student, tokenizer = build_student(config.student, config.teacher.path, task, labels, folder)
    vocabulary = load_vocabulary(tokenizer)
    train = encode_split(task.train, task, vocabulary, labels)
    dev = encode_dev(task, vocabulary, labels)
    teacher, train, scores = _teacher(config, folder, device, train, dev)
    report_scores(scores, task, labels, teacher.precision)
    stages = _Stages(config, folder, teacher, student, tokenizer, train, dev, on_measure)
    steps = sum(stages.run(name, stage) for name, stage in stages_of(config).items())
    return {
        "steps": steps,
        "best": stages.best,
        "teacher": scores,
        "processes": world_size(),
        "device": device.type,
    }


def _teacher(
    config: TaskDistillConfig, folder: Path, device: torch.device, train: Encoded, dev: dict[str, Encoded]
) -> tuple[Teacher | StoredTeacher, Encoded, dict[str, float]]:
    """The teacher, the training data with its logits where they are stored, and its scores on dev."""
    live = None
    if runs_beside(config) or any(compares_layers(stage) for stage in stages_of(config).values()):
        live = Teacher(config.teacher, device)
    if live and runs_beside(config):
        live.model.eval()  # a recipe may leave dropout on; a measurement never does
        scores = measure_dev(live.model, dev, config.task)
        live.model.train(config.teacher.dropout)
        return live, train, scores
    outputs = Path(config.teacher.outputs or folder / "outputs")
    if not config.teacher.outputs:
        write_outputs(outputs, config.teacher, config.task, device)
    found = splits(outputs, config.task, config.teacher)
    scores = stored_scores(found, config.teacher, config.task)
    stored = StoredTeacher(found["dev"].precision, live)
    return stored, replace(train, teacher=found["train"].read()), scores


@dataclass
class _Stages:
    """Runs the stages one after another on the same student."""

    config: TaskDistillConfig
    folder: Path
    teacher: Teacher | StoredTeacher
    student: PreTrainedModel
    tokenizer: str
    train: Encoded
    dev: dict[str, Encoded]
    on_measure: OnMeasure | None

    def __post_init__(self) -> None:
        self.projections = saved_projections(self.config.student.path)
        self.best: dict[str, float] = {}
        self.rng_state = torch.get_rng_state()

    def run(self, name: str, stage: StageConfig) -> int:
        """Run one stage; returns its steps."""
        config, objective = self.config, self._objective(stage)
        micro = micro_batch_size(stage.batch_size, config.engine, world_size())
        pads_to = config.task.max_length if stage.objective.normalise == "all" else None
        answers = compares_answers(stage)
        target = self.folder / "student"

        def save() -> None:
            save_student(trainer, target, self.tokenizer, config.task.max_length)

        trainer = Trainer(
            name=name,
            objective=objective,
            teacher=self.teacher,
            source=TaskSource(
                self.train, stage.batch_size, micro, config.seed, rank(), world_size(), pads_to
            ),
            stage=stage,
            engine_config=config.engine,
            record=config.record,
            seed=config.seed,
            folder=self.folder,
            evaluate=(lambda: measure_dev(self.student, self.dev, config.task)) if answers else None,
            on_best=save,
            best_folder=target,
            selection=config.task.selection,
            on_measure=self._tell(name),
        )
        best = trainer.fit()
        self.best = best or self.best
        is_last = name == list(stages_of(config))[-1]
        # The last stage's alone: after a resume, an earlier one must not replace a later one's best.
        if is_last and not answers:
            save()
        self.projections = trainer.engine.full_state(objective.projections) or self.projections
        trainer.engine.close()
        return trainer.total

    def _objective(self, stage: StageConfig) -> Objective:
        layers, width = [], 0
        if compares_layers(stage):
            teacher = read_config(self.config.teacher.path)
            own = self.student.config.num_hidden_layers
            layers = layer_map(stage.objective.layer_map, own, teacher.num_hidden_layers)
            width = teacher.hidden_size
        torch.set_rng_state(self.rng_state)  # new projections are the same after a resume
        objective = Objective(self.student, stage.objective, layers, width)
        start_projections(objective, self.projections)
        return objective

    def _tell(self, name: str) -> OnMeasure | None:
        """Tell of a stage's measurements with the share of all stages that is done, by their epochs."""
        tell = self.on_measure
        if tell is None:
            return None
        epochs = {stage_name: stage.epochs for stage_name, stage in stages_of(self.config).items()}
        names = list(epochs)
        before = sum(epochs[earlier] for earlier in names[: names.index(name)])
        return lambda scores, done: tell(scores, (before + epochs[name] * done) / sum(epochs.values()))
