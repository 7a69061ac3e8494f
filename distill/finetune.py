"""Job `finetune`: training on labels, of a teacher, or of a baseline that learns from labels alone."""

from __future__ import annotations

from pathlib import Path

import torch

from data_pipeline.tasks import encode_split, label_set
from data_pipeline.vocabulary import load_vocabulary
from distill.attention import install
from distill.checks import micro_batch_size, model_config, own_labels
from distill.encoders import build_classifier, read_config, student_shape, with_dropout
from distill.engine import rank, start_processes, world_size
from distill.general import save_student
from distill.measure import predict, task_metrics
from distill.objective import Objective
from distill.settings import FinetuneConfig
from distill.sources import TaskSource
from distill.trainer import Trainer


def run(config: FinetuneConfig, folder: Path) -> dict:
    """Train and write `folder`/model, the best on dev; returns the summary's figures."""
    device = start_processes()
    torch.manual_seed(config.seed)
    task, stage = config.task, config.stage
    vocabulary = load_vocabulary(config.model)
    base = read_config(config.model)
    labels = label_set(task, own_labels(model_config(config.model, "model")))
    train = encode_split(task.train, task, vocabulary, labels)
    dev = encode_split(task.dev, task, vocabulary, labels)
    if config.shape:
        shape = with_dropout(student_shape(config.shape, base), config.dropout)
        model = build_classifier(config.shape.path, shape, labels)
    else:
        model = build_classifier(config.model, with_dropout(base, config.dropout), labels)
    micro = micro_batch_size(stage.batch_size, config.engine, world_size())
    trainer = Trainer(
        name="finetune",
        objective=Objective(model, install(model), stage.objective, [], 0),
        teacher=None,
        source=TaskSource(train, stage.batch_size, micro, config.seed, rank(), world_size()),
        stage=stage,
        engine_config=config.engine,
        record=config.record,
        seed=config.seed,
        folder=folder,
        evaluate=lambda: task_metrics(predict(model, dev), dev.labels, task.selection),
        on_best=lambda: save_student(trainer, folder / "model", config.model),
        selection=task.selection,
    )
    best = trainer.fit()
    trainer.engine.close()
    return {"steps": trainer.total, "best": best, "processes": world_size(), "device": device.type}
