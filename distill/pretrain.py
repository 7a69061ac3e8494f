"""Job `pretrain`: masked language modelling over a corpus, from trained weights or random ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel

from data_pipeline.masking import DynamicMasking
from data_pipeline.model_folder import model_folder
from data_pipeline.vocabulary import load_vocabulary
from distill.encoders import build_backbone, read_config, with_dropout
from distill.engine import start_processes, world_size
from distill.general import DamageRecord, corpus_reader, train_over_corpus
from distill.model_facts import has_weights
from distill.objective import Objective
from distill.part_checks import micro_batch_size
from distill.settings import PretrainConfig
from distill.sources import CorpusSource, MaskedSource
from distill.trainer import Trainer


def run(config: PretrainConfig, folder: Path) -> dict:
    """Train and write `folder`/model, an encoder with its head; returns the summary's figures."""
    start_processes()
    torch.manual_seed(config.seed)
    model, damage = build(config), DamageRecord(folder)
    reader = corpus_reader(config, damage)
    micro = micro_batch_size(config.stage.batch_size, config.engine, world_size())
    masking = DynamicMasking(config.masking, load_vocabulary(config.model), config.seed)
    trainer = Trainer(
        name="pretrain",
        objective=Objective(model, config.stage.objective, [], 0),
        teacher=None,
        source=MaskedSource(CorpusSource(reader, micro, config.pad_to_longest), masking),
        stage=config.stage,
        engine_config=config.engine,
        record=config.record,
        seed=config.seed,
        folder=folder,
        head_share=config.masking.probability,
    )
    return train_over_corpus(trainer, reader, damage, folder / "model", config.model)


def build(config: PretrainConfig) -> PreTrainedModel:
    """An encoder with a masked-language-model head, in fp32: trained weights, or random ones."""
    path, base = model_folder(config.model), read_config(config.model)
    if config.shape:
        student = replace(config.shape, dropout=config.dropout)
        return build_backbone(student, config.model, AutoModelForMaskedLM)
    shape = with_dropout(base, config.dropout)
    if not has_weights(config.model):
        return AutoModelForMaskedLM.from_config(shape, dtype=torch.float32)
    return AutoModelForMaskedLM.from_pretrained(path, config=shape, dtype=torch.float32)
