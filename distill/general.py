"""Job `general`: distillation of a pretrained encoder over a corpus (TinyBERT's first half)."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM

from data_pipeline.masking import DynamicMasking
from data_pipeline.stream import CorpusReader, Damage
from data_pipeline.vocabulary import load_vocabulary
from distill.encoders import Teacher, build_backbone, read_config, save_model, saved_projections
from distill.engine import barrier, rank, start_processes, world_size
from distill.layer_map import layer_map
from distill.objective import Objective
from distill.part_checks import compares_layers, micro_batch_size
from distill.settings import GeneralConfig, PretrainConfig
from distill.sources import CorpusSource, MaskedSource
from distill.trainer import Trainer


def run(config: GeneralConfig, folder: Path) -> dict:
    """Train and write `folder`/student, a Hugging Face encoder; returns the summary's figures."""
    device = start_processes()
    torch.manual_seed(config.seed)
    stage = config.stage
    head = AutoModelForMaskedLM if config.masks else AutoModel
    student = build_backbone(config.student, config.teacher.path, head)
    teacher_config = read_config(config.teacher.path)
    layers = []
    if compares_layers(stage):  # else a student may have more than its teacher
        own, others = student.config.num_hidden_layers, teacher_config.num_hidden_layers
        layers = layer_map(stage.objective.layer_map, own, others)
    objective = Objective(student, stage.objective, layers, teacher_config.hidden_size)
    start_projections(objective, saved_projections(config.student.path))
    damage = DamageRecord(folder)
    reader = corpus_reader(config, damage)
    micro = micro_batch_size(stage.batch_size, config.engine, world_size())
    # Of a teacher whose logits nobody asks for, what lies above the layers compared is never computed.
    needed = None if stage.objective.logits else max(teacher for _, teacher in layers)
    corpus = CorpusSource(reader, micro, config.pad_to_longest)
    masking = DynamicMasking(config.masking, load_vocabulary(config.teacher.path), config.seed)
    trainer = Trainer(
        name="general",
        objective=objective,
        teacher=Teacher(config.teacher, device, needed, AutoModelForMaskedLM),
        source=MaskedSource(corpus, masking) if config.masks else corpus,
        stage=stage,
        engine_config=config.engine,
        record=config.record,
        seed=config.seed,
        folder=folder,
        head_share=config.masking.probability if config.masks else 1.0,
    )
    return train_over_corpus(trainer, reader, damage, folder / "student", config.teacher.path)


def train_over_corpus(
    trainer: Trainer, reader: CorpusReader, damage: DamageRecord, target: Path, tokenizer: str
) -> dict:
    """Train to the end and save the student as `target`; returns the summary's figures."""
    try:
        trainer.fit()
    finally:
        reader.close()  # else what is read ahead delays the end of a process that failed
    save_student(trainer, target, tokenizer)
    trainer.engine.close()
    return {
        "steps": trainer.total,
        "processes": world_size(),
        "device": trainer.engine.device.type,
        "notes": damage.notes(),
    }


def corpus_reader(config: GeneralConfig | PretrainConfig, damage: DamageRecord) -> CorpusReader:
    """The reader of this rank's rows."""
    return CorpusReader(
        config.shards,
        config.stage.batch_size,
        config.seed,
        rank(),
        world_size(),
        by_length=config.pad_to_longest,
        config=config.stream,
        on_damage=damage,
    )


class DamageRecord:
    """RUN/damage.jsonl: blocks that were skipped, written by every rank and kept through resumes."""

    def __init__(self, folder: Path):
        self.path = folder / "damage.jsonl"

    def __call__(self, damage: Damage) -> None:
        """Add a block, and say so."""
        print(f"warning: skipped {damage.rows} rows: {damage.message}", file=sys.stderr)
        line = json.dumps(asdict(damage)).encode() + b"\n"
        with self.path.open("a+b") as file:
            if size := file.tell():
                file.seek(size - 1)
                if file.read() != b"\n":  # half a line of a killed rank
                    line = b"\n" + line
            file.write(line)  # one write, so that ranks don't mix

    def notes(self) -> list[str]:
        """What the report says of them."""
        if not self.path.is_file():
            return []
        lines = set(self.path.read_text(encoding="utf-8").splitlines())  # ranks may find the same
        blocks = []
        for line in sorted(lines):
            with suppress(ValueError):  # half-written by a killed rank
                blocks.append(json.loads(line))
        rows = sum(block["rows"] for block in blocks)
        listed = "; ".join(block["message"] for block in blocks[:20])
        return [f"{len(blocks)} blocks of {rows} rows were damaged or missing and skipped: {listed}"]


def start_projections(objective: Objective, trained: dict[str, Tensor]) -> None:
    """Let the objective's projections go on from what was trained before; warn where they don't fit."""
    own = objective.projections.state_dict()
    if not own or not trained:
        return
    if {k: v.shape for k, v in trained.items()} == {k: v.shape for k, v in own.items()}:
        objective.projections.load_state_dict(trained)
    elif rank() == 0:
        print(
            "warning: the projections trained before are of other layers or widths than this objective's, "
            "which start from random weights",
            file=sys.stderr,
        )


def save_student(trainer: Trainer, target: Path, tokenizer: str, length: int | None = None) -> None:
    """Save the student with its projections and the `length` it was trained with. Every rank calls."""
    objective, engine = trainer.objective, trainer.engine
    weights = engine.full_state(objective.student)
    projections = engine.full_state(objective.projections)
    best = {"stage": trainer.name, **trainer.best} if trainer.best else None
    if rank() == 0:
        save_model(objective.student, target, tokenizer, weights, projections, length, best)
    barrier()
