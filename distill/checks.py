"""What each job refuses before it starts: by reading files alone, without torch; nothing is written.

Every check raises ValueError with one line: what is wrong, where, and what to do.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from data_pipeline.augment import read
from data_pipeline.model_folder import model_folder
from data_pipeline.noise import tagger
from data_pipeline.settings import AugmentConfig
from data_pipeline.tasks import label_set
from data_pipeline.vocabulary import load_vocabulary
from distill.model_facts import (
    WORDS,
    check_weights,
    fp32_bytes,
    has_weights,
    model_config,
    of_words,
    outputs_of,
    own_labels,
    positions,
)
from distill.number_checks import check_dropout, check_least
from distill.onnx_runtime import FILES, refuse_missing
from distill.outputs import check_outputs
from distill.part_checks import (
    CORPUS_TERMS,
    LAYERS,
    TASK_TERMS,
    check_candidates,
    check_masked_head,
    check_masking,
    check_objective,
    check_record,
    check_shards,
    check_stage,
    check_terms,
    compares_answers,
    compares_layers,
    runs_beside,
    stages_of,
)
from distill.settings import (
    EvaluateConfig,
    ExportConfig,
    FinetuneConfig,
    GeneralConfig,
    LabelConfig,
    PredictConfig,
    PretrainConfig,
    TaskDistillConfig,
    TextGcnConfig,
    masking_of_models,
)
from distill.student_checks import check_start, check_student, check_words, is_of_words, warn_of_unread
from distill.task_checks import (
    check_head,
    check_latency_batches,
    check_measured,
    check_members,
    check_pair,
    check_path_head,
    check_submit,
    check_task,
    is_plain,
    kept_labels,
    warn_of_outputs,
)

# Endings of files that hold no plain lines, and would be labelled line by line all the same.
NO_LINES = {".json", ".parquet", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".zip", ".xls", ".xlsx"}
LARGEST_GRAPH = 2_000_000_000  # bytes; a protobuf message holds 2 GiB in all


def check_general(config: GeneralConfig, processes: int) -> None:
    """Refuse a general run that can't work."""
    teacher = model_config(config.teacher.path, "teacher")
    if config.teacher.ensemble or config.teacher.outputs:
        raise ValueError("teacher: general distillation runs one teacher; leave ensemble and outputs out")
    if of_words(teacher) or is_of_words(config.student) or config.student.cls:
        raise ValueError(
            "general distillation compares layers, which models of whole words and of your own classes "
            "have not; distil them on a task (distillery task)"
        )
    student = check_student("student", config.student, config.teacher.path)
    check_weights("teacher", config.teacher.path)
    check_stage("stage", config.stage, config.engine, processes, measured=False)
    check_record(config.record)
    objective = config.stage.objective
    check_objective("stage", objective, student, teacher, CORPUS_TERMS)
    if not any(getattr(objective, term) for term in (*LAYERS, "logits", "custom")):
        raise ValueError("stage.objective: mlm alone needs no teacher; run distillery pretrain")
    if objective.normalise == "all" and config.pad_to_longest:
        raise ValueError(
            "stage.objective.normalise: all counts padding, and with pad_to_longest its amount depends on "
            "the batch; give --pad_to_longest false, or valid"
        )
    if objective.custom and not (objective.custom_layers or objective.logits):
        raise ValueError(
            "stage.objective.custom: there are no logits here; set custom_layers, or leave it out"
        )
    check_shards(config, config.teacher.path, min(positions(teacher), positions(student)), processes)
    if objective.logits:
        check_masked_head(config.teacher.path, "teacher")
    if config.masks:
        check_masking(config.masking, config.shards, config.stream.store)
    elif config.masking != masking_of_models():
        raise ValueError(
            "masking: this objective masks nothing; give stage.objective.logits or mlm a weight, or "
            "leave it out"
        )
    warn_of_unread(config.student)


def check_pretrain(config: PretrainConfig, processes: int) -> None:
    """Refuse a pretraining that can't work."""
    model, shape = model_config(config.model, "model"), config.shape
    if of_words(model):
        raise ValueError(f"model: {config.model} is of whole words; give an encoder such as BERT")
    if shape and (shape.path or shape.cls or shape.kind != "transformer"):
        raise ValueError("shape: give layers, hidden_size, heads and intermediate_size of a transformer")
    if shape:
        model = check_student("shape", shape, config.model)
        if shape.dropout:
            raise ValueError("shape.dropout: pretrain takes it from --dropout; leave it out")
    elif "architectures" in model and not has_weights(config.model):
        raise ValueError(
            f"model: {config.model} holds no weights in safetensors; give shape to start from random ones"
        )
    check_dropout("dropout", config.dropout)
    check_stage("stage", config.stage, config.engine, processes, measured=False)
    check_record(config.record)
    check_terms("stage", config.stage.objective, ("mlm",))
    check_shards(config, config.model, positions(model), processes)
    check_masking(config.masking, config.shards, config.stream.store)


def check_finetune(config: FinetuneConfig, processes: int) -> None:
    """Refuse a fine-tuning that can't work."""
    shape = config.shape
    if not config.model and not (shape and is_of_words(shape)):
        raise ValueError("model: none given; give a model folder, or a shape.kind of whole words")
    base = model_config(config.model, "model") if config.model else {"model_type": WORDS}
    model = base
    if shape:
        check_start("shape", shape, config.model)
        model = check_student("shape", shape, config.model, by_layers=False) if config.model else base
        check_words("shape", shape, [config.stage], config.engine)
        if shape.dropout:
            raise ValueError("shape.dropout: finetune takes it from --dropout; leave it out")
    check_dropout("dropout", config.dropout)
    check_pair((shape.path if shape else None) or config.model or "", model, config.task.text_pair)
    check_stage("stage", config.stage, config.engine, processes, measured=True)
    check_record(config.record)
    check_terms("stage", config.stage.objective, ("labels", "custom"))
    if config.stage.objective.custom_layers:
        raise ValueError("stage.objective.custom_layers: there is no teacher to compare with; leave it out")
    labels = kept_labels(config.task, base)
    check_task(config.task, labels, positions(model), config.stage.batch_size)
    if shape:
        check_path_head(shape, label_set(config.task, labels))
    elif config.model:
        load_vocabulary(config.model)
        check_weights("model", config.model)
        warn_of_outputs(config.model, base, config.task)


def check_task_distill(config: TaskDistillConfig, processes: int) -> None:
    """Refuse a task distillation that can't work."""
    teacher = model_config(config.teacher.path, "teacher")
    check_record(config.record)
    stages = stages_of(config)
    if not stages:
        raise ValueError("intermediate.epochs and prediction.epochs are both 0: nothing to train")
    by_layers = any(map(compares_layers, stages.values()))
    student = check_student("student", config.student, config.teacher.path, by_layers)
    check_pair(config.student.path or "", student, config.task.text_pair)
    check_members(config.teacher, config.task)
    for name, stage in stages.items():
        check_stage(name, stage, config.engine, processes, compares_answers(stage))
        check_objective(name, stage.objective, student, teacher, TASK_TERMS)
    if config.teacher.dropout and not runs_beside(config):
        raise ValueError(
            "teacher.dropout: the teacher's logits are computed beforehand here, without dropout"
        )
    check_words("student", config.student, list(stages.values()), config.engine)
    largest = max(stage.batch_size for stage in stages.values())
    longest = min(positions(teacher), positions(student))
    check_task(config.task, own_labels(teacher), longest, largest)
    check_path_head(config.student, label_set(config.task, own_labels(teacher)))
    check_outputs(config.teacher, config.task)
    warn_of_unread(config.student)


def check_text_gcn(config: TextGcnConfig) -> None:
    """Refuse a graph that can't be made."""
    task = config.task
    if task.kind != "classification" or task.text_pair or task.more_dev:
        raise ValueError("task: textgcn takes single texts of one class each, and one dev file")
    check_least(config, ("hidden_size", "window", "least", "most", "epochs"))
    check_dropout("dropout", config.dropout)
    if not 0 < config.lr < math.inf:
        raise ValueError(f"lr: {config.lr}; give a number above 0")
    check_task(task, labels=None, longest=1 << 20, batch_size=1)  # texts are not cut


def check_label(config: LabelConfig, processes: int) -> None:
    """Refuse a labelling that can't work."""
    if config.teacher.outputs:
        raise ValueError("teacher.outputs: the label job writes them; leave it out")
    if config.teacher.dropout:
        raise ValueError("teacher.dropout: outputs are computed without dropout; leave it out")
    check_least(config, ("batch_size", "rows_per_file"))
    teacher = check_members(config.teacher, config.task)
    check_task(config.task, own_labels(teacher), positions(teacher), 1)


def check_augment(config: AugmentConfig, processes: int) -> None:
    """Refuse an augmentation that can't work."""
    check_least(config, ("variants", "candidates", "batch_size", "examples_per_piece"))
    columns = [name for name in (config.text, config.text_pair, config.label, "origin") if name]
    if len(set(columns)) < len(columns):
        raise ValueError(f"columns: {', '.join(columns)}; give others (origin is the output's own)")
    load_vocabulary(config.model)
    if config.method == "tinybert":
        check_candidates(config)
    else:
        for name in ("vectors", "precision"):
            if getattr(config, name) != getattr(AugmentConfig, name):
                raise ValueError(f"{name}: read by the method tinybert alone; leave it out")
        config.noise.check()
        tagger(config.noise, config.unit)
    _check_judge(config)
    read(config)


def _check_judge(config: AugmentConfig) -> None:
    """Refuse a teacher that can't judge variants, or is not told how sure it must be."""
    if (config.teacher is None) != (config.confidence is None):
        raise ValueError("teacher and confidence: either needs the other; give both or neither")
    if config.teacher is None or config.confidence is None:
        return
    if not 0 < config.confidence <= 1:
        raise ValueError(f"confidence: {config.confidence} is no probability; give 0.9, say")
    model = model_config(config.teacher, "teacher")
    check_head(config.teacher, model)
    check_pair(config.teacher, model, config.text_pair)
    several = model.get("problem_type") == "multi_label_classification"
    if several or outputs_of(model) == 1:
        raise ValueError(f"teacher: {config.teacher} does not choose one label of several; leave it out")
    load_vocabulary(config.teacher)
    check_weights("teacher", config.teacher)


def check_evaluate(config: EvaluateConfig) -> None:
    """Refuse an evaluation that can't work."""
    if not config.models:
        raise ValueError("models: none given; set --models '{NAME: [FOLDER, ...]}'")
    if config.reference and config.reference not in config.models:
        raise ValueError(f"reference: {config.reference} is none of {', '.join(config.models)}")
    check_latency_batches(config.latency_batches)
    check_submit(config)
    check_least(config, ("batch_size", "latency_repeats"))
    for name, paths in config.models.items():
        if not paths or not is_plain(name):
            raise ValueError(f"models.{name}: give a plain name and one folder or more")
        for path in paths:
            check_measured(f"models.{name}", path, config.task, config.classes)


def check_export(config: ExportConfig) -> None:
    """Refuse a model that can't be exported."""
    refuse_missing("onnx", "onnxscript", "onnxruntime")
    check_least(config, ("batch_size", "latency_repeats"))
    if config.opset is not None and not 18 <= config.opset <= 20:
        raise ValueError(f"opset: {config.opset}; give 18 to 20")
    check_latency_batches(config.latency_batches)
    if config.push_to_hub:
        check_hub(config.push_to_hub)
    model = model_config(config.model, "model", config.classes)
    if (size := fp32_bytes(config.model, model)) > LARGEST_GRAPH:
        raise ValueError(
            f"model: {config.model} has {size / 1e9:.1f} GB of fp32 weights and an ONNX file holds 2; "
            "give a smaller model"
        )
    if config.torch_export and of_words(model):
        raise ValueError(
            "torch_export: it can't follow a model of whole words; leave it out, for the ONNX file can"
        )
    if config.task:
        check_measured("model", config.model, config.task, config.classes)
    else:
        check_head(config.model, model, config.classes)
        load_vocabulary(config.model)
        check_weights("model", config.model)


def check_hub(name: str) -> None:
    """Refuse a name that the hub doesn't take, and to upload without a login."""
    from huggingface_hub import get_token

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"push_to_hub: {name}; give OWNER/NAME")
    if not get_token():
        raise ValueError(
            "push_to_hub: you are not logged in to the hub; run hf auth login, or set HF_TOKEN"
        )


def check_predict(config: PredictConfig) -> None:
    """Refuse a model, a file or sizes that can't be used."""
    graph = config.runtime != "torch"  # exported from a classifier; the class itself is no longer needed
    model = model_config(config.model, "model", config.classes, any_kind=graph)
    if not graph:
        check_head(config.model, model, config.classes)
        check_weights("model", config.model)
    load_vocabulary(config.model)
    check_pair(config.model, model, config.text_pair)
    if graph:
        refuse_missing("onnxruntime")
        if not (Path(model_folder(config.model)) / FILES[config.runtime]).is_file():
            raise ValueError(
                f"runtime: {config.model} has no {FILES[config.runtime]}; give the model/ of an export run"
            )
    if config.format == "auto" and Path(config.input).suffix.lower() in NO_LINES:
        raise ValueError(
            f"input: {config.input} is no file of lines; give a text a line, .tsv, .csv or .jsonl, or say "
            "which of them it is by --format"
        )
    check_least(config, ("batch_size", "window"))
    longest = positions(model)
    if config.max_length is not None and not 4 <= config.max_length <= longest:
        raise ValueError(f"max_length: {config.max_length}; the model takes 4 to {longest}")
    if config.input != "-" and (not Path(config.input).exists() or Path(config.input).is_dir()):
        what = "is a folder" if Path(config.input).is_dir() else "does not exist"
        raise ValueError(f"input: {config.input} {what}; give a file, or - for standard input")
    both = "-" not in (config.input, config.output) and Path(config.output).is_file()
    if both and Path(config.input).samefile(config.output):
        raise ValueError(f"output: {config.output} is the input; give another file")
    folder = Path(config.output).parent
    if config.output != "-" and (Path(config.output).is_dir() or not folder.is_dir()):
        raise ValueError(f"output: {config.output} can't be written; give a file in a folder that exists")
