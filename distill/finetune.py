"""Job `finetune`: training on labels, of a teacher, or of a baseline that learns from labels alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from data_pipeline.tasks import encode_dev, encode_split, label_set
from data_pipeline.vocabulary import load_vocabulary
from distill.encoders import build_classifier, read_config, with_dropout
from distill.engine import rank, start_processes, world_size
from distill.general import save_student
from distill.measure import measure_dev
from distill.model_facts import model_config
from distill.objective import Objective
from distill.part_checks import micro_batch_size
from distill.settings import FinetuneConfig
from distill.sources import TaskSource
from distill.student import build_student
from distill.task_checks import kept_labels
from distill.trainer import Trainer


def run(config: FinetuneConfig, folder: Path) -> dict:
    """Train and write `folder`/model, the best on dev; returns the summary's figures."""
    device = start_processes()
    torch.manual_seed(config.seed)
    task, stage = config.task, config.stage
    own = kept_labels(task, model_config(config.model, "model")) if config.model else None
    labels = label_set(task, own)
    if config.shape:
        student = replace(config.shape, dropout=config.dropout)
        model, tokenizer = build_student(student, config.model, task, labels, folder)
    else:
        assert config.model is not None
        shape = with_dropout(read_config(config.model), config.dropout)
        model, tokenizer = build_classifier(config.model, shape, labels, task.kind), config.model
    vocabulary = load_vocabulary(tokenizer)
    train = encode_split(task.train, task, vocabulary, labels)
    dev = encode_dev(task, vocabulary, labels)
    micro = micro_batch_size(stage.batch_size, config.engine, world_size())
    trainer = Trainer(
        name="finetune",
        objective=Objective(model, stage.objective, [], 0),
        teacher=None,
        source=TaskSource(train, stage.batch_size, micro, config.seed, rank(), world_size()),
        stage=stage,
        engine_config=config.engine,
        record=config.record,
        seed=config.seed,
        folder=folder,
        evaluate=lambda: measure_dev(model, dev, task),
        on_best=lambda: save_student(trainer, folder / "model", tokenizer, task.max_length),
        best_folder=folder / "model",
        selection=task.selection,
    )
    best = trainer.fit()
    trainer.engine.close()
    return {"steps": trainer.total, "best": best, "processes": world_size(), "device": device.type}
