"""Job `general`: distillation of a pretrained encoder over a corpus (TinyBERT's first half)."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from data_pipeline.stream import CorpusReader, Damage
from distill.attention import install
from distill.encoders import Teacher, build_backbone, load_projections, read_config, save_model
from distill.engine import barrier, rank, start_processes, world_size
from distill.layer_map import layer_map
from distill.objective import Objective
from distill.part_checks import micro_batch_size
from distill.settings import GeneralConfig, PretrainConfig
from distill.sources import CorpusSource
from distill.trainer import Trainer


def run(config: GeneralConfig, folder: Path) -> dict:
    """Train and write `folder`/student, a Hugging Face encoder; returns the summary's figures."""
    device = start_processes()
    torch.manual_seed(config.seed)
    stage = config.stage
    student = build_backbone(config.student, config.teacher.path)
    teacher_config = read_config(config.teacher.path)
    layers = layer_map(
        stage.objective.layer_map,
        student.config.num_hidden_layers,
        teacher_config.num_hidden_layers,
    )
    objective = Objective(student, install(student), stage.objective, layers, teacher_config.hidden_size)
    load_projections(config.student.path, objective.projections)
    damage = DamageRecord(folder)
    reader = corpus_reader(config, damage)
    micro = micro_batch_size(stage.batch_size, config.engine, world_size())
    trainer = Trainer(
        name="general",
        objective=objective,
        teacher=Teacher(config.teacher, device, layers=max(teacher for _, teacher in layers)),
        source=CorpusSource(reader, micro, config.pad_to_longest),
        stage=stage,
        engine_config=config.engine,
        record=config.record,
        seed=config.seed,
        folder=folder,
    )
    try:
        trainer.fit()
    finally:
        reader.close()  # else what is read ahead delays the end of a process that failed
    save_student(trainer, folder / "student", config.teacher.path)
    trainer.engine.close()
    return {
        "steps": trainer.total,
        "processes": world_size(),
        "device": device.type,
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
    """RUN/damage.jsonl: blocks that were passed over, told by every rank, through resumes."""

    def __init__(self, folder: Path):
        self.path = folder / "damage.jsonl"

    def __call__(self, damage: Damage) -> None:
        """Add a block, and say so."""
        print(f"warning: skipped {damage.rows} rows: {damage.message}", file=sys.stderr)
        with self.path.open("a", encoding="utf-8") as file:  # one write, so that ranks don't mix
            file.write(json.dumps(asdict(damage)) + "\n")

    def notes(self) -> list[str]:
        """What the report says of them."""
        if not self.path.is_file():
            return []
        lines = set(self.path.read_text(encoding="utf-8").splitlines())  # ranks may find the same
        blocks = [json.loads(line) for line in sorted(lines)]
        rows = sum(block["rows"] for block in blocks)
        listed = "; ".join(block["message"] for block in blocks[:20])
        return [f"{len(blocks)} blocks of {rows} rows were damaged or missing and skipped: {listed}"]


def save_student(trainer: Trainer, target: Path, tokenizer: str) -> None:
    """Save the student with its projections. Every rank calls."""
    objective, engine = trainer.objective, trainer.engine
    weights = engine.full_state(objective.student)
    projections = engine.full_state(objective.projections)
    if rank() == 0:
        save_model(objective.student, target, tokenizer, weights, projections)
    barrier()
