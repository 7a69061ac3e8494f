"""The jobs, by name: what each takes, what it refuses, what runs it. Imports none of their modules."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """One job; `config`, `check` and `run` are `module:name`, imported when they are needed.

    Attributes:
        help: One line for the command's help.
        config: Its settings, a dataclass.
        check: Refuses settings that can't work, by ValueError, before anything is written.
        run: Does it.
        folder: Whether it makes a run folder; `run` then takes (config, folder).
        parallel: Whether several processes may run it together.
        schedules: Whether it starts workers on Ray itself.
        resumes: Whether one that was stopped goes on where it was; others begin anew.
        steps: Whether it ends its training step first when asked to stop; others stop at once.
        words: The setting that takes the command line's positional arguments.
        instead: `setting=module:name`: where the setting is given this function, called with its value,
            replaces the whole job; there is no run folder then.
    """

    help: str
    config: str
    check: str
    run: str
    folder: bool = True
    parallel: bool = False
    schedules: bool = False
    resumes: bool = True
    steps: bool = False
    words: str = ""
    instead: str = ""


JOBS = {
    "demo": Job(
        "the whole way on this machine, from a pretrained teacher to a small student",
        "launcher.demo:DemoConfig",
        "launcher.demo:check",
        "launcher.demo:run",
    ),
    "doctor": Job(
        "what this machine has, what is missing, and how to get it",
        "launcher.doctor:DoctorConfig",
        "",
        "launcher.doctor:run",
        folder=False,
    ),
    "pregenerate": Job(
        "a corpus to shards of training rows",
        "data_pipeline.settings:PregenerateConfig",
        "data_pipeline.pregenerate:check",
        "data_pipeline.pregenerate:run",
        instead="verify=data_pipeline.verify:verify",
    ),
    "general": Job(
        "distil a pretrained encoder over a corpus",
        "distill.settings:GeneralConfig",
        "distill.checks:check_general",
        "distill.general:run",
        parallel=True,
        steps=True,
    ),
    "vocabulary": Job(
        "a WordPiece vocabulary of a corpus, for an encoder that starts from nothing",
        "data_pipeline.settings:VocabularyConfig",
        "data_pipeline.wordpiece:check",
        "data_pipeline.wordpiece:run",
        resumes=False,
    ),
    "pretrain": Job(
        "masked language modelling over a corpus",
        "distill.settings:PretrainConfig",
        "distill.checks:check_pretrain",
        "distill.pretrain:run",
        parallel=True,
        steps=True,
    ),
    "finetune": Job(
        "train on labels: a teacher, or a baseline",
        "distill.settings:FinetuneConfig",
        "distill.checks:check_finetune",
        "distill.finetune:run",
        parallel=True,
        steps=True,
    ),
    "augment": Job(
        "variants of a task's training texts, for a teacher to label",
        "data_pipeline.settings:AugmentConfig",
        "distill.checks:check_augment",
        "distill.augment:run",
        parallel=True,
    ),
    "label": Job(
        "a teacher's outputs for a task's files, kept for many students",
        "distill.settings:LabelConfig",
        "distill.checks:check_label",
        "distill.label:run",
        parallel=True,
    ),
    "task": Job(
        "distil a fine-tuned teacher on its task, in two steps",
        "distill.settings:TaskDistillConfig",
        "distill.checks:check_task_distill",
        "distill.task:run",
        parallel=True,
        steps=True,
    ),
    "tune": Job(
        "search for the best student under a budget; a trial is a run of task",
        "tune.settings:TuneConfig",
        "tune.checks:check",
        "launcher.search:run",
        schedules=True,
    ),
    "textgcn": Job(
        "classify by a graph of texts and words, without a teacher",
        "distill.settings:TextGcnConfig",
        "distill.checks:check_text_gcn",
        "distill.text_gcn:run",
        resumes=False,
    ),
    "evaluate": Job(
        "accuracy, size and speed of models, in one table",
        "distill.settings:EvaluateConfig",
        "distill.checks:check_evaluate",
        "distill.evaluate:run",
        resumes=False,
    ),
    "export": Job(
        "a trained model to ONNX, fp32 and int8, with a model card",
        "distill.settings:ExportConfig",
        "distill.checks:check_export",
        "distill.export:run",
        resumes=False,
    ),
    "predict": Job(
        "texts to labels with probabilities",
        "distill.settings:PredictConfig",
        "distill.checks:check_predict",
        "distill.predict:run",
        folder=False,
    ),
    "report": Job(
        "run folders to one self-contained page",
        "distill.report:ReportConfig",
        "distill.report:check",
        "distill.report:run",
        folder=False,
        words="runs",
    ),
    "status": Job(
        "how runs that were submitted to a cluster are getting on",
        "launcher.submitted:StatusConfig",
        "",
        "launcher.submitted:status",
        folder=False,
        words="runs",
    ),
    "logs": Job(
        "what a submitted run says, until it has ended",
        "launcher.submitted:LogsConfig",
        "",
        "launcher.submitted:logs",
        folder=False,
        words="runs",
    ),
    "cancel": Job(
        "end submitted runs",
        "launcher.submitted:CancelConfig",
        "",
        "launcher.submitted:cancel",
        folder=False,
        words="runs",
    ),
    "completion": Job(
        "a script that completes jobs and settings in bash, zsh or tcsh",
        "launcher.completion:CompletionConfig",
        "",
        "launcher.completion:run",
        folder=False,
        words="shell",
    ),
}


def load(reference: str) -> Any:
    """Import `module:name`."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


def again(name: str) -> str:
    """What to do, in words, about a run of this job that ended without finishing."""
    if JOBS[name].resumes:
        return "the same command with --resume continues from the last checkpoint"
    return f"{name} keeps nothing on the way: the same command with --resume runs it anew"


def check(name: str, config: Any, processes: int) -> None:
    """Refuse settings that can't work. Raises ValueError with one line."""
    job = JOBS[name]
    if not 0 <= getattr(config, "seed", 0) < 1 << 63:
        raise ValueError(f"seed: {config.seed}; give 0 or more, below 2^63")
    if not job.check:
        return
    function: Callable[..., None] = load(job.check)
    if job.parallel:
        function(config, processes)
    else:
        function(config)
