"""What is refused of the parts that several jobs' settings are made of: students, stages, objectives, data.

As in distill/checks.py: nothing but files is read, without torch, and every refusal is one line.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from data_pipeline.corpus import check_corpus
from data_pipeline.settings import METRICS, AugmentConfig, MaskingConfig, StoreConfig, TaskConfig
from data_pipeline.store import ShardFolder
from data_pipeline.stream import CorpusReader
from data_pipeline.tasks import check_labels, label_set, read_examples
from data_pipeline.vocabulary import load_vocabulary, trained_length
from data_pipeline.word_vectors import check_vectors
from distill.custom import Named, check_name, name_of
from distill.layer_map import layer_map
from distill.model_facts import WORDS, has_weights, is_custom, model_config, of_words, own_labels, positions
from distill.schedule import ScheduleConfig
from distill.settings import (
    EngineConfig,
    EvaluateConfig,
    GeneralConfig,
    ObjectiveConfig,
    PretrainConfig,
    RecordConfig,
    StageConfig,
    StudentConfig,
    TaskDistillConfig,
    TeacherConfig,
)
from distill.trackers import check_trackers

LONGEST_PATIENCE = 1500  # seconds; collectives give up after 1800
LAYERS = ("attention", "relation", "hidden")
TASK_TERMS = (*LAYERS, "logits", "logits_mse", "labels", "custom")
CORPUS_TERMS = (*LAYERS, "logits", "mlm", "custom")
TERMS = (*LAYERS, "logits", "logits_mse", "labels", "mlm")
# Types of models whose 8-bit forward passes have the same bits in any batch (int8.py).
EXACT = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


def check_shards(
    config: GeneralConfig | PretrainConfig, tokenizer: str, longest: int, processes: int
) -> None:
    """Refuse shards that are missing, of another vocabulary, too long for the models or too few."""
    if config.stream.workers < 0 or config.stream.store.retries < 0 or not config.stream.store.cache_gb > 0:
        raise ValueError("stream: workers and store.retries must be 0 or more, store.cache_gb above 0")
    for shards in [config.shards] if isinstance(config.shards, str) else config.shards:
        folder = ShardFolder(shards, config.stream.store)
        manifest = folder.manifest
        if manifest.vocabulary != load_vocabulary(tokenizer).fingerprint:
            raise ValueError(
                f"shards: {shards} was made with another vocabulary than that of {tokenizer}; "
                f"run pregenerate with --tokenizer {tokenizer}"
            )
        if manifest.max_length > longest:
            raise ValueError(
                f"shards: {shards} holds rows of {manifest.max_length} tokens and the models "
                f"take {longest}; run pregenerate with --packing.max_length {longest}"
            )
        if config.stream.damaged == "fail":
            folder.refuse_missing()
    CorpusReader(config.shards, config.stage.batch_size, config.seed, 0, processes, config=config.stream)


def check_masked_head(path: str, name: str) -> None:
    """Refuse a model that can't tell masked tokens."""
    heads = model_config(path, name).get("architectures") or []
    if not any("MaskedLM" in head or "PreTraining" in head for head in heads):
        raise ValueError(
            f"{name}: {path} has no masked-language-model head; train one (distillery pretrain)"
        )


def check_masking(masking: MaskingConfig, shards: str | dict[str, float], store: StoreConfig) -> None:
    """Refuse masks that can't be drawn, and rows that were masked before."""
    if masking.unit == "chinese_word" or not 0 < masking.probability < 1 or masking.most < 1:
        raise ValueError(
            "masking: give unit token or word, a probability between 0 and 1, and most 1 or more"
        )
    for folder in [shards] if isinstance(shards, str) else shards:
        made = ShardFolder(folder, store).manifest.packing.get("masking") or {}
        if made.get("probability") or made.get("at_least_one"):
            raise ValueError(
                f"shards: {folder} was masked when it was made, and tokens are masked anew in every epoch; "
                "run pregenerate without packing.masking"
            )


def check_candidates(config: AugmentConfig) -> None:
    """Refuse a model without its head, and numbers of candidates that it can't give."""
    check_masked_head(config.model, "model")
    kind = model_config(config.model, "model").get("model_type")
    if config.precision == "int8" and kind not in EXACT:
        raise ValueError(
            f"precision: int8 takes models of type {', '.join(EXACT)}, not {kind}; leave it out"
        )
    if not 0 < config.replaced <= 1:
        raise ValueError(f"replaced: {config.replaced}; give a chance above 0, at most 1")
    most = 20 if config.unit == "chinese_word" else load_vocabulary(config.model).size // 2
    if config.candidates > most:
        raise ValueError(f"candidates: {config.candidates}; give at most {most}")
    if config.vectors and config.unit == "chinese_word":
        raise ValueError("vectors: Chinese words are made of characters; leave it out")
    if config.vectors:
        check_vectors(config.vectors)


@cache
def warn_of_length(name: str, path: str, longest: int) -> None:
    """Say so, once, where texts may be longer than those that a model was trained with."""
    if (length := trained_length(path)) and length < longest:
        print(
            f"warning: {name}: {path} was trained with sequences of {length} tokens at most; here they "
            f"have up to {longest} (task.max_length)",
            file=sys.stderr,
        )


def check_members(teacher: TeacherConfig, task: TaskConfig) -> dict:
    """Refuse teachers without a head for the task or with unlike labels; returns the first one's config."""
    first = model_config(teacher.path, "teacher")
    for path, weight in teacher.members.items():
        model = model_config(path, "teacher")
        check_classifier(path, model, task)
        if teacher.precision == "int8" and of_words(model):
            raise ValueError(
                f"teacher.precision: int8 is for transformers, not for the model of words {path}; give auto"
            )
        load_vocabulary(path)
        warn_of_length("teacher", path, task.max_length)
        if own_labels(model) != own_labels(first):
            raise ValueError(
                f"teacher.ensemble: {path} has the labels {own_labels(model)} and {teacher.path} has "
                f"{own_labels(first)}; members need the same in the same order"
            )
        if not weight > 0:
            raise ValueError(f"teacher.ensemble: the weight of {path} is {weight}; give more than 0")
    if teacher.path in teacher.ensemble:
        raise ValueError(f"teacher.ensemble: {teacher.path} is teacher.path too; name it once")
    return first


def stages_of(config: TaskDistillConfig) -> dict[str, StageConfig]:
    """The stages of a task distillation that run, in order."""
    stages = {"intermediate": config.intermediate, "prediction": config.prediction}
    if is_of_words(config.student) or config.student.cls:
        del stages["intermediate"]  # it has no layers to compare
    return {name: stage for name, stage in stages.items() if stage.epochs}


def compares_layers(stage: StageConfig) -> bool:
    """Whether a stage's loss needs the teacher's layers and not its logits alone."""
    objective = stage.objective
    return any(getattr(objective, term) for term in LAYERS) or objective.custom_layers


def runs_beside(config: TaskDistillConfig) -> bool:
    """Whether the teacher gives its logits while the student trains; otherwise they are stored."""
    if config.teacher.ensemble or config.teacher.outputs:
        return False
    if not config.student.path:
        return config.student.kind == "transformer"
    own, teacher = load_vocabulary(config.student.path), load_vocabulary(config.teacher.path)
    return own.fingerprint == teacher.fingerprint


def is_of_words(student: StudentConfig) -> bool:
    """Whether a student reads whole words."""
    if student.cls:
        return False
    if student.path:
        return of_words(model_config(student.path, "student.path"))
    return student.kind != "transformer"


def check_words(name: str, student: StudentConfig, stages: list[StageConfig], engine: EngineConfig) -> None:
    """Refuse settings of a student of words that can't work; warn of a transformer's learning rate."""
    if not is_of_words(student):
        return
    if engine.zero == 3:
        raise ValueError("engine.zero: 3 shares out layer by layer; give 0, 1 or 2 for a student of words")
    words = student.words
    if words.vectors and words.corpus.files:
        raise ValueError(f"{name}.words: give vectors or corpus, not both")
    for key in ("size", "least", "most"):
        if getattr(words, key) < 1:
            raise ValueError(f"{name}.words.{key}: {getattr(words, key)}; give 1 or more")
    if words.vectors and not student.path:
        check_vectors(words.vectors)
    if words.corpus.files and not student.path:
        check_corpus(words.corpus, 1)
    for stage in stages:
        if stage.optimizer.lr < 2e-4:
            print(
                f"warning: optimizer.lr is {stage.optimizer.lr:g}, which suits transformers; a student of "
                "words learns with about 1e-3",
                file=sys.stderr,
            )


def check_latency_batches(batches: list[int]) -> None:
    """Refuse batch sizes that can't be timed."""
    if min(batches, default=0) < 1:
        raise ValueError(f"latency_batches: {batches}; give sizes of 1 or more")


def check_submit(config: EvaluateConfig) -> None:
    """Refuse batch sizes to time, and files to answer, that can't be used."""
    check_latency_batches(config.latency_batches)
    for name, path in config.submit.items():
        if Path(name).name != name:
            raise ValueError(f"submit.{name}: give a plain name")
        read_examples(path, config.task, labelled=False)


def check_measured(name: str, path: str, task: TaskConfig, classes: Sequence[Named] = ()) -> None:
    """Refuse a model that can't be measured on a task's files."""
    model = model_config(path, name, classes)
    check_classifier(path, model, task, classes)
    check_reading(task, positions(model))
    load_vocabulary(path)
    warn_of_length(name, path, task.max_length)
    labels = label_set(task, own_labels(model))
    for split, file in task.files.items():
        if split != "train":
            check_labels(file, task, labels)


def check_student(student: StudentConfig, teacher: str, by_layers: bool = True) -> dict:
    """Refuse an impossible shape, or another vocabulary where layers are compared; returns its config."""
    if student.cls or student.arguments:
        return check_own(student, teacher)
    check_start(student, teacher)
    if student.path:
        shape = model_config(student.path, "student.path")
        if not by_layers:
            load_vocabulary(student.path)
        elif load_vocabulary(student.path).fingerprint != load_vocabulary(teacher).fingerprint:
            raise ValueError(
                f"student.path: {student.path} has another vocabulary than the teacher's, "
                f"{teacher}; distil a student of this teacher first"
            )
        return shape
    load_vocabulary(teacher)
    if student.kind != "transformer":
        return {"model_type": WORDS}
    if of_words(model_config(teacher, "teacher")):
        raise ValueError(
            f"student: {teacher}, the teacher, is of whole words, and a new transformer takes family and "
            "vocabulary from its teacher; give student.path, or another student.kind"
        )
    _check_shape(student)
    return {
        **model_config(teacher, "teacher"),
        "num_hidden_layers": student.layers,
        "hidden_size": student.hidden_size,
        "num_attention_heads": student.heads,
    }


def _check_shape(student: StudentConfig) -> None:
    for name in ("layers", "hidden_size", "heads", "intermediate_size"):
        if getattr(student, name) < 1:
            raise ValueError(f"student.{name}: {getattr(student, name)}; give 1 or more")
    if student.hidden_size % student.heads:
        raise ValueError(
            f"student.heads: {student.heads} heads don't divide the width {student.hidden_size}; "
            "change student.heads or student.hidden_size"
        )
    if not 0 <= student.dropout < 1:
        raise ValueError(f"student.dropout: {student.dropout}; give 0 or more, below 1")


def check_own(student: StudentConfig, teacher: str) -> dict:
    """Refuse a class of the user's own that can't be found, or settings beside it; returns its config."""
    if student.cls is None:
        raise ValueError("student.arguments: of a class given by student.cls; leave it out")
    check_name("student.cls", student.cls)
    load_vocabulary(student.path or teacher)
    for name in ("kind", "start"):
        if getattr(student, name) != getattr(StudentConfig(), name):
            raise ValueError(f"student.{name}: student.cls is given instead; leave it out")
    if not student.path:
        return {}
    if student.arguments:
        raise ValueError(f"student.arguments: {student.path} has its shape already; leave them out")
    model = model_config(student.path, "student.path", [student.cls])
    if not is_custom(model, [student.cls]):
        raise ValueError(
            f"student.path: {student.path} holds no {name_of(student.cls)}; leave student.cls out, or give "
            "another folder"
        )
    return model


def check_start(student: StudentConfig, teacher: str | None) -> None:
    """Refuse a student that can't take its first weights from its teacher."""
    if student.start == "random":
        return
    if student.path or student.kind != "transformer":
        given = f"path {student.path}" if student.path else f"kind {student.kind}"
        raise ValueError(
            f"student.start: {student.start} is for a new transformer, and this student has {given}; "
            "leave start out"
        )
    model = model_config(teacher or "", "teacher")
    if not has_weights(teacher or ""):
        raise ValueError(f"student.start: {teacher} holds no weights in safetensors; give random")
    for name in ("layers", "hidden_size", "intermediate_size"):
        own, most = getattr(student, name), model.get({"layers": "num_hidden_layers"}.get(name, name), 0)
        if own > most:
            raise ValueError(
                f"student.{name}: {own} is more than the {most} of {teacher}, whose weights student.start "
                "takes; give no more, or student.start random"
            )


def check_stage(name: str, stage: StageConfig, engine: EngineConfig, processes: int) -> None:
    """Refuse a stage whose numbers don't fit one another."""
    if not 0 < stage.epochs < math.inf or stage.batch_size < 1:
        raise ValueError(f"{name}: epochs must be above 0 and batch_size 1 or more")
    if stage.evaluate_every is not None and stage.evaluate_every < 1:
        raise ValueError(f"{name}.evaluate_every: {stage.evaluate_every}; give 1 or more, or null")
    if not stage.optimizer.lr > 0:
        raise ValueError(f"{name}.optimizer.lr: {stage.optimizer.lr}; give a number above 0")
    check_schedule(f"{name}.schedule", stage.schedule)
    if stage.optimizer.name == "bert_adam" and (engine.zero or engine.precision not in ("auto", "fp32")):
        raise ValueError(f"{name}.optimizer: bert_adam runs with engine.zero 0 in fp32 only")
    if stage.optimizer.name == "lamb" and engine.zero:
        raise ValueError(f"{name}.optimizer: lamb sees whole tensors; give engine.zero 0, or adamw")
    if stage.optimizer.name == "lamb" and engine.precision == "fp16":
        raise ValueError(f"{name}.optimizer: lamb does not run in fp16; give engine.precision bf16 or fp32")
    if engine.skip_non_finite < 0:
        raise ValueError(f"engine.skip_non_finite: {engine.skip_non_finite}; give 0 or more")
    if not 0 <= engine.patience <= LONGEST_PATIENCE:
        raise ValueError(f"engine.patience: {engine.patience}; give 1 to {LONGEST_PATIENCE}, or 0")
    micro_batch_size(stage.batch_size, engine, processes)


def check_schedule(name: str, schedule: ScheduleConfig) -> None:
    """Refuse a schedule that can't be."""
    if schedule.cycles < 1:
        raise ValueError(f"{name}.cycles: {schedule.cycles}; give 1 or more")
    if not 0 <= schedule.warmup <= 1:
        raise ValueError(f"{name}.warmup: {schedule.warmup}; give a share, 0 to 1")


def check_record(record: RecordConfig) -> None:
    """Refuse numbers of steps or checkpoints below 1, and trackers that are not installed."""
    for name in ("log_every", "save_every", "keep"):
        if getattr(record, name) < 1:
            raise ValueError(f"record.{name}: {getattr(record, name)}; give 1 or more")
    if record.profile < 0:
        raise ValueError(f"record.profile: {record.profile}; give a number of steps, 0 for none")
    check_trackers(record.trackers)


def check_terms(name: str, objective: ObjectiveConfig, allowed: tuple[str, ...]) -> None:
    """Refuse weights that are negative, all zero, or on terms this job does not have."""
    weights = {term: getattr(objective, term) for term in TERMS}
    for term, weight in weights.items():
        if weight < 0 or (weight and term not in allowed):
            raise ValueError(
                f"{name}.objective.{term}: {weight}; this job takes {', '.join(allowed)}, 0 or more"
            )
    for thing, weight in objective.custom.items():
        check_name(f"{name}.objective.custom", thing)
        if not weight > 0 or "custom" not in allowed:
            raise ValueError(
                f"{name}.objective.custom: {name_of(thing)} with {weight}; this job takes "
                f"{', '.join(allowed)}, above 0"
            )
    if objective.custom_layers and not objective.custom:
        raise ValueError(f"{name}.objective.custom_layers: there is no custom term; leave it out")
    if not any(weights.values()) and not objective.custom:
        raise ValueError(f"{name}.objective: every term is 0; give {' or '.join(allowed)} a weight")
    if objective.temperature <= 0:
        raise ValueError(f"{name}.objective.temperature: {objective.temperature}; give above 0")


def check_objective(
    name: str, objective: ObjectiveConfig, student: dict, teacher: dict, allowed: tuple[str, ...]
) -> None:
    """Refuse terms that this student can't learn from this teacher."""
    check_terms(name, objective, allowed)
    if not any(getattr(objective, term) for term in LAYERS) and not objective.custom_layers:
        return
    for model, whose in ((student, "student"), (teacher, "teacher")):
        if "num_hidden_layers" not in model:
            what = "of whole words" if of_words(model) else "a class of your own"
            raise ValueError(
                f"{name}.objective: the {whose} is {what} and has no layers to compare; set "
                f"{', '.join(LAYERS)} to 0 and custom_layers to false"
            )
    layer_map(objective.layer_map, student["num_hidden_layers"], teacher["num_hidden_layers"])
    heads = student["num_attention_heads"], teacher["num_attention_heads"]
    if objective.attention and heads[0] != heads[1]:
        common = math.gcd(student["hidden_size"], teacher["hidden_size"])
        raise ValueError(
            f"student.heads: {heads[0]}, but the teacher has {heads[1]}, and attention scores are "
            f"compared head by head; give {heads[1]}, or --{name}.objective.attention 0 "
            f"--{name}.objective.relation 1 --{name}.objective.relation_heads {common}"
        )
    if objective.relation:
        check_relations(name, objective, student, teacher)


def check_relations(name: str, objective: ObjectiveConfig, student: dict, teacher: dict) -> None:
    """Refuse relations of heads that the two models can't be cut into."""
    if not objective.relations:
        raise ValueError(f"{name}.objective.relations: none; give some of qk, qq, kk, vv")
    heads = student["num_attention_heads"], teacher["num_attention_heads"]
    widths = student["hidden_size"], teacher["hidden_size"]
    wanted = objective.relation_heads
    if not wanted and heads[0] != heads[1]:
        raise ValueError(
            f"{name}.objective.relation_heads: 0, but the student has {heads[0]} heads and the teacher "
            f"{heads[1]}; give a divisor of both widths, such as {math.gcd(*widths)}"
        )
    if wanted < 0 or (wanted and any(width % wanted for width in widths)):
        raise ValueError(
            f"{name}.objective.relation_heads: {wanted} does not divide the widths {widths[0]} and "
            f"{widths[1]}; give a divisor of both, such as {math.gcd(*widths)}"
        )


def check_classifier(path: str, model: dict, task: TaskConfig, classes: Sequence[Named] = ()) -> None:
    """Refuse a folder without a classification head for the task."""
    check_head(path, model, classes)
    check_pair(path, model, task.text_pair)
    outputs = len(model.get("id2label") or {0: "", 1: ""})
    needed = 1 if task.kind == "regression" else len(label_set(task, own_labels(model)))
    if outputs != needed:
        raise ValueError(f"{path} has {outputs} outputs and the task needs {needed}; is it another task's?")


def check_head(path: str, model: dict, classes: Sequence[Named] = ()) -> None:
    """Refuse a folder without a classification head; the user's own classes have one."""
    for each in classes:
        check_name("classes", each)
    heads = model.get("architectures") or []
    if not is_custom(model, classes) and not any("SequenceClassification" in head for head in heads):
        raise ValueError(f"{path} has no classification head; fine-tune it first (distillery finetune)")


def check_pair(path: str, model: dict, text_pair: str | None) -> None:
    """Refuse a model of whole words for pairs on single texts, and the other way round."""
    pairs = text_pair is not None
    if of_words(model) and model.get("pair", pairs) != pairs:
        reads, given = ("single texts", "pairs") if pairs else ("pairs", "single texts")
        raise ValueError(f"{path} reads {reads}, and {given} are given; set or leave out text_pair")


def check_task(task: TaskConfig, labels: list[str] | None, longest: int, batch_size: int) -> None:
    """Refuse data that can't be read, labels outside the set, or too long sequences."""
    check_reading(task, longest)
    known = label_set(task, labels)
    for name in task.more_dev:
        if name in ("train", "dev") or not name.isidentifier():
            raise ValueError(
                f"task.more_dev: {name} is no name for a file; give a word, such as mismatched"
            )
    if len({*known}) < len(known):
        raise ValueError(f"task.labels: {known}; give each once")
    if task.kind != "regression" and len(known) < 2:
        where = "task.labels" if task.labels else f"task: {task.train}"
        raise ValueError(f"{where} has one label only, {known}; nothing to learn")
    for path in task.files.values():
        check_labels(path, task, known)
    count = len(read_examples(task.train, task).labels)
    if count < batch_size:
        raise ValueError(
            f"batch_size: {batch_size} is more than the {count} training examples; give a smaller one"
        )


def check_reading(task: TaskConfig, longest: int) -> None:
    """Refuse sequences longer than a model takes, and a metric that is not the task's."""
    if task.max_length > longest or task.max_length < 4:
        raise ValueError(f"task.max_length: {task.max_length}; the model takes 4 to {longest}")
    if task.selection not in METRICS[task.kind]:
        raise ValueError(
            f"task.metric: {task.selection} does not go with {task.kind}; give "
            f"{', '.join(METRICS[task.kind])}"
        )


def micro_batch_size(batch_size: int, config: EngineConfig, world: int) -> int:
    """Sequences of one micro-batch. Raises ValueError where the batch can't be shared out."""
    if batch_size % world:
        raise ValueError(f"batch_size: {batch_size} can't be shared by {world} processes; give a multiple")
    share = batch_size // world
    size = min(config.micro_batch_size or share, share)
    if size < 1 or share % size:
        raise ValueError(f"engine.micro_batch_size: {size} does not divide a process's share, {share}")
    return size
