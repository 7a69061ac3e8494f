"""What each job refuses before it starts: read from files alone, without torch, nothing written.

Every check raises ValueError with one line: what is wrong, where, and what to do.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from data_pipeline.augment import AugmentConfig, read
from data_pipeline.corpus import check_corpus
from data_pipeline.model_folder import model_folder
from data_pipeline.noise import tagger
from data_pipeline.store import ShardFolder
from data_pipeline.stream import CorpusReader
from data_pipeline.tasks import METRICS, TaskConfig, check_labels, label_set, read_examples
from data_pipeline.vocabulary import load_vocabulary
from data_pipeline.word_vectors import check_vectors
from distill.layer_map import layer_map
from distill.onnx_runtime import FILES, refuse_missing
from distill.outputs import check_outputs
from distill.settings import (
    EngineConfig,
    EvaluateConfig,
    ExportConfig,
    FinetuneConfig,
    GeneralConfig,
    LabelConfig,
    ObjectiveConfig,
    PredictConfig,
    PretrainConfig,
    RecordConfig,
    StageConfig,
    StudentConfig,
    TaskDistillConfig,
    TeacherConfig,
    TextGcnConfig,
)

LAYERS = ("attention", "relation", "hidden")
TASK_TERMS = (*LAYERS, "logits", "logits_mse", "labels")
TERMS = (*TASK_TERMS, "mlm")
WORDS = "distillery_words"  # the model type of students of whole words


def check_general(config: GeneralConfig, processes: int) -> None:
    """Refuse a general run that can't work."""
    teacher = model_config(config.teacher.path, "teacher")
    if config.teacher.ensemble or config.teacher.outputs:
        raise ValueError("teacher: general distillation runs one teacher; leave ensemble and outputs out")
    if of_words(teacher) or is_of_words(config.student):
        raise ValueError(
            "general distillation compares layers, which models of whole words have not; distil them on a "
            "task (distillery task)"
        )
    student = check_student(config.student, config.teacher.path)
    check_stage("stage", config.stage, config.engine, processes)
    check_record(config.record)
    check_objective("stage", config.stage.objective, student, teacher, LAYERS)
    check_shards(config, config.teacher.path, min(positions(teacher), positions(student)), processes)


def check_pretrain(config: PretrainConfig, processes: int) -> None:
    """Refuse a pretraining that can't work."""
    model, shape, masking = model_config(config.model, "model"), config.shape, config.masking
    if of_words(model):
        raise ValueError(f"model: {config.model} is of whole words; give an encoder such as BERT")
    if shape and (shape.path or shape.kind != "transformer"):
        raise ValueError("shape: give layers, hidden_size, heads and intermediate_size of a transformer")
    if shape:
        model = check_student(shape, config.model)
        if shape.dropout:
            raise ValueError("shape.dropout: of a pretraining it is --dropout; leave it out")
    elif "architectures" in model and not has_weights(config.model):
        raise ValueError(
            f"model: {config.model} holds no weights in safetensors; give shape to start from random ones"
        )
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout: {config.dropout}; give 0 or more, below 1")
    if masking.unit == "chinese_word" or not 0 < masking.probability < 1 or masking.most < 1:
        raise ValueError(
            "masking: give unit token or word, a probability between 0 and 1, and most 1 or more"
        )
    check_stage("stage", config.stage, config.engine, processes)
    check_record(config.record)
    check_terms("stage", config.stage.objective, ("mlm",))
    check_shards(config, config.model, positions(model), processes)
    for shards in [config.shards] if isinstance(config.shards, str) else config.shards:
        made = ShardFolder(shards, config.stream.store).manifest.packing.get("masking") or {}
        if made.get("probability") or made.get("at_least_one"):
            raise ValueError(
                f"shards: {shards} was masked when it was made, and pretrain masks anew in every epoch; "
                "run pregenerate without packing.masking"
            )


def has_weights(model: str) -> bool:
    """Whether a model folder holds weights that are loaded."""
    return any(Path(model_folder(model)).glob("model*.safetensors"))


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


def check_finetune(config: FinetuneConfig, processes: int) -> None:
    """Refuse a fine-tuning that can't work."""
    shape = config.shape
    if not config.model and not (shape and is_of_words(shape)):
        raise ValueError("model: none given; give a model folder, or a shape.kind of whole words")
    base = model_config(config.model, "model") if config.model else {"model_type": WORDS}
    model = base
    if shape:
        model = check_student(shape, config.model, by_layers=False) if config.model else base
        check_words("shape", shape, [config.stage], config.engine)
    check_pair((shape.path if shape else None) or config.model or "", model, config.task.text_pair)
    check_stage("stage", config.stage, config.engine, processes)
    check_record(config.record)
    check_terms("stage", config.stage.objective, ("labels",))
    check_task(config.task, own_labels(base), positions(model), config.stage.batch_size)


def check_task_distill(config: TaskDistillConfig, processes: int) -> None:
    """Refuse a task distillation that can't work."""
    teacher = model_config(config.teacher.path, "teacher")
    check_record(config.record)
    stages = stages_of(config)
    if not stages:
        raise ValueError("intermediate.epochs and prediction.epochs are both 0: nothing to train")
    student = check_student(config.student, config.teacher.path, any(map(compares_layers, stages.values())))
    check_pair(config.student.path or "", student, config.task.text_pair)
    check_members(config.teacher, config.task)
    for name, stage in stages.items():
        check_stage(name, stage, config.engine, processes)
        check_objective(name, stage.objective, student, teacher, TASK_TERMS)
    if config.teacher.dropout and not runs_beside(config):
        raise ValueError(
            "teacher.dropout: the teacher's logits are computed beforehand here, without dropout"
        )
    check_words("student", config.student, list(stages.values()), config.engine)
    largest = max(stage.batch_size for stage in stages.values())
    longest = min(positions(teacher), positions(student))
    check_task(config.task, own_labels(teacher), longest, largest)
    check_outputs(config.teacher, config.task)


def check_text_gcn(config: TextGcnConfig) -> None:
    """Refuse a graph that can't be made."""
    task = config.task
    if task.kind != "classification" or task.text_pair or task.more_dev:
        raise ValueError("task: textgcn takes single texts of one class each, and one dev file")
    for name in ("hidden_size", "window", "least", "most", "epochs"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: {getattr(config, name)}; give 1 or more")
    if not config.lr > 0 or not 0 <= config.dropout < 1:
        raise ValueError("textgcn: give lr above 0, and dropout from 0 to below 1")
    check_task(task, None, 1 << 20, 1)


def check_label(config: LabelConfig, processes: int) -> None:
    """Refuse a labelling that can't work."""
    if config.teacher.outputs:
        raise ValueError("teacher.outputs: the label job writes them; leave it out")
    if config.teacher.dropout:
        raise ValueError("teacher.dropout: outputs are computed without dropout; leave it out")
    for name in ("batch_size", "rows_per_file"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: {getattr(config, name)}; give 1 or more")
    teacher = check_members(config.teacher, config.task)
    check_task(config.task, own_labels(teacher), positions(teacher), 1)


def check_augment(config: AugmentConfig, processes: int) -> None:
    """Refuse an augmentation that can't work."""
    for name in ("variants", "candidates", "batch_size", "examples_per_piece"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: {getattr(config, name)}; give 1 or more")
    columns = [name for name in (config.text, config.text_pair, config.label, "origin") if name]
    if len(set(columns)) < len(columns):
        raise ValueError(f"columns: {', '.join(columns)}; give others (origin is the output's own)")
    load_vocabulary(config.model)
    if config.method == "tinybert":
        check_candidates(config)
    else:
        if config.vectors:
            raise ValueError("vectors: read by the method tinybert alone; leave it out")
        config.noise.check()
        tagger(config.noise, config.unit)
    read(config)


def check_candidates(config: AugmentConfig) -> None:
    """Refuse a model without its head, and numbers of candidates that it can't give."""
    heads = model_config(config.model, "model").get("architectures") or []
    if not any("MaskedLM" in head or "PreTraining" in head for head in heads):
        raise ValueError(
            f"model: {config.model} has no masked-language-model head; train one (distillery pretrain)"
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


def check_members(teacher: TeacherConfig, task: TaskConfig) -> dict:
    """Refuse teachers without a head for the task or with unlike labels; returns the first one's config."""
    first = model_config(teacher.path, "teacher")
    for path, weight in teacher.members.items():
        model = model_config(path, "teacher")
        check_classifier(path, model, task)
        load_vocabulary(path)
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
    if is_of_words(config.student):
        del stages["intermediate"]  # it has no layers to compare
    return {name: stage for name, stage in stages.items() if stage.epochs}


def compares_layers(stage: StageConfig) -> bool:
    """Whether a stage's loss needs the teacher's layers and not its logits alone."""
    return any(getattr(stage.objective, term) for term in LAYERS)


def runs_beside(config: TaskDistillConfig) -> bool:
    """Whether the teacher gives its logits while the student trains; otherwise they are stored."""
    if config.teacher.ensemble or config.teacher.outputs:
        return False
    if not config.student.path:
        return config.student.kind == "transformer"
    own, teacher = load_vocabulary(config.student.path), load_vocabulary(config.teacher.path)
    return own.fingerprint == teacher.fingerprint


def of_words(model: dict) -> bool:
    """Whether a config.json is that of a model of whole words."""
    return model.get("model_type") == WORDS


def is_of_words(student: StudentConfig) -> bool:
    """Whether a student reads whole words."""
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


def check_evaluate(config: EvaluateConfig) -> None:
    """Refuse an evaluation that can't work."""
    if not config.models:
        raise ValueError("models: none given; set --models '{NAME: [FOLDER, ...]}'")
    if config.reference and config.reference not in config.models:
        raise ValueError(f"reference: {config.reference} is none of {', '.join(config.models)}")
    check_submit(config)
    for key in ("batch_size", "latency_repeats"):
        if getattr(config, key) < 1:
            raise ValueError(f"{key}: {getattr(config, key)}; give 1 or more")
    for name, paths in config.models.items():
        if not paths or Path(name).name != name:
            raise ValueError(f"models.{name}: give a plain name and one folder or more")
        for path in paths:
            check_measured(f"models.{name}", path, config.task)


def check_export(config: ExportConfig) -> None:
    """Refuse a model that can't be exported."""
    refuse_missing("onnx", "onnxscript", "onnxruntime")
    for key in ("batch_size", "latency_repeats"):
        if getattr(config, key) < 1:
            raise ValueError(f"{key}: {getattr(config, key)}; give 1 or more")
    if config.opset is not None and not 18 <= config.opset <= 20:
        raise ValueError(f"opset: {config.opset}; give 18 to 20")
    check_latency_batches(config.latency_batches)
    if config.task:
        check_measured("model", config.model, config.task)
    else:
        check_head(config.model, model_config(config.model, "model"))
        load_vocabulary(config.model)


def check_predict(config: PredictConfig) -> None:
    """Refuse a model, a file or sizes that can't be used."""
    model = model_config(config.model, "model")
    check_head(config.model, model)
    load_vocabulary(config.model)
    check_pair(config.model, model, config.text_pair)
    if config.runtime != "torch":
        refuse_missing("onnxruntime")
        if not (Path(model_folder(config.model)) / FILES[config.runtime]).is_file():
            raise ValueError(
                f"runtime: {config.model} has no {FILES[config.runtime]}; give the model/ of an export run"
            )
    for key in ("batch_size", "window"):
        if getattr(config, key) < 1:
            raise ValueError(f"{key}: {getattr(config, key)}; give 1 or more")
    longest = positions(model)
    if not 4 <= config.max_length <= longest:
        raise ValueError(f"max_length: {config.max_length}; the model takes 4 to {longest}")
    if config.input != "-" and (not Path(config.input).exists() or Path(config.input).is_dir()):
        raise ValueError(f"input: {config.input} does not exist; give a file, or - for standard input")
    both = "-" not in (config.input, config.output) and Path(config.output).is_file()
    if both and Path(config.input).samefile(config.output):
        raise ValueError(f"output: {config.output} is the input; give another file")
    folder = Path(config.output).parent
    if config.output != "-" and (Path(config.output).is_dir() or not folder.is_dir()):
        raise ValueError(f"output: {config.output} can't be written; give a file in a folder that exists")


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


def check_measured(name: str, path: str, task: TaskConfig) -> None:
    """Refuse a model that can't be measured on a task's files."""
    model = model_config(path, name)
    check_classifier(path, model, task)
    check_reading(task, positions(model))
    load_vocabulary(path)
    labels = label_set(task, own_labels(model))
    for split, file in task.files.items():
        if split != "train":
            check_labels(file, task, labels)


def model_config(path: str, name: str) -> dict:
    """A model folder's config.json."""
    file = Path(model_folder(path)) / "config.json"
    if not file.is_file():
        raise ValueError(f"{name}: {path} is no model folder (no config.json there); give one")
    try:
        config = dict(json.loads(file.read_text(encoding="utf-8")).items())
    except (ValueError, AttributeError):
        raise ValueError(f"{name}: {file} is damaged; save the model again") from None
    for key in () if of_words(config) else ("num_hidden_layers", "num_attention_heads"):
        if key not in config:
            raise ValueError(
                f"{name}: {path} is of type {config.get('model_type')}, without {key}; give an encoder "
                "such as BERT, RoBERTa, ELECTRA or ALBERT"
            )
    return config


def check_student(student: StudentConfig, teacher: str, by_layers: bool = True) -> dict:
    """Refuse an impossible shape, or another vocabulary where layers are compared; returns its config."""
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
    return {
        **model_config(teacher, "teacher"),
        "num_hidden_layers": student.layers,
        "hidden_size": student.hidden_size,
        "num_attention_heads": student.heads,
    }


def check_stage(name: str, stage: StageConfig, engine: EngineConfig, processes: int) -> None:
    """Refuse a stage whose numbers don't fit one another."""
    if not 0 < stage.epochs < math.inf or stage.batch_size < 1:
        raise ValueError(f"{name}: epochs must be above 0 and batch_size 1 or more")
    if stage.evaluate_every is not None and stage.evaluate_every < 1:
        raise ValueError(f"{name}.evaluate_every: {stage.evaluate_every}; give 1 or more, or null")
    if not stage.optimizer.lr > 0:
        raise ValueError(f"{name}.optimizer.lr: {stage.optimizer.lr}; give a number above 0")
    if not 0 <= stage.schedule.warmup <= 1:
        raise ValueError(f"{name}.schedule.warmup: {stage.schedule.warmup}; give a share, 0 to 1")
    if stage.optimizer.name == "bert_adam" and (engine.zero or engine.precision not in ("auto", "fp32")):
        raise ValueError(f"{name}.optimizer: bert_adam runs with engine.zero 0 in fp32 only")
    if stage.optimizer.name == "lamb" and engine.zero:
        raise ValueError(f"{name}.optimizer: lamb sees whole tensors; give engine.zero 0, or adamw")
    micro_batch_size(stage.batch_size, engine, processes)


def check_record(record: RecordConfig) -> None:
    """Refuse numbers of steps or checkpoints below 1."""
    for name in ("log_every", "save_every", "keep"):
        if getattr(record, name) < 1:
            raise ValueError(f"record.{name}: {getattr(record, name)}; give 1 or more")
    if record.profile < 0:
        raise ValueError(f"record.profile: {record.profile}; give a number of steps, 0 for none")


def check_terms(name: str, objective: ObjectiveConfig, allowed: tuple[str, ...]) -> None:
    """Refuse weights that are negative, all zero, or on terms this job does not have."""
    weights = {term: getattr(objective, term) for term in TERMS}
    for term, weight in weights.items():
        if weight < 0 or (weight and term not in allowed):
            raise ValueError(
                f"{name}.objective.{term}: {weight}; this job takes {', '.join(allowed)}, 0 or more"
            )
    if not any(weights.values()):
        raise ValueError(f"{name}.objective: every term is 0; give {' or '.join(allowed)} a weight")
    if objective.temperature <= 0:
        raise ValueError(f"{name}.objective.temperature: {objective.temperature}; give above 0")


def check_objective(
    name: str, objective: ObjectiveConfig, student: dict, teacher: dict, allowed: tuple[str, ...]
) -> None:
    """Refuse terms that this student can't learn from this teacher."""
    check_terms(name, objective, allowed)
    if not any(getattr(objective, term) for term in LAYERS):
        return
    for model, whose in ((student, "student"), (teacher, "teacher")):
        if of_words(model):
            raise ValueError(
                f"{name}.objective: the {whose} is of whole words and has no layers to compare; set "
                f"{', '.join(LAYERS)} to 0"
            )
    layer_map(objective.layer_map, student["num_hidden_layers"], teacher["num_hidden_layers"])
    heads = student["num_attention_heads"], teacher["num_attention_heads"]
    if objective.attention and heads[0] != heads[1]:
        raise ValueError(
            f"student.heads: {heads[0]}, but the teacher has {heads[1]}, and attention scores are "
            f"compared head by head; give {heads[1]}, or set {name}.objective.attention 0 and .relation 1"
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


def check_classifier(path: str, model: dict, task: TaskConfig) -> None:
    """Refuse a folder without a classification head for the task."""
    check_head(path, model)
    check_pair(path, model, task.text_pair)
    outputs = len(model.get("id2label") or {0: "", 1: ""})
    needed = 1 if task.kind == "regression" else len(label_set(task, own_labels(model)))
    if outputs != needed:
        raise ValueError(f"{path} has {outputs} outputs and the task needs {needed}; is it another task's?")


def check_head(path: str, model: dict) -> None:
    """Refuse a folder without a classification head."""
    heads = model.get("architectures") or []
    if not any("SequenceClassification" in head for head in heads):
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
    if task.kind != "regression" and len(known) < 2:
        raise ValueError(f"task: {task.train} has one label only, {known}; nothing to learn")
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


def own_labels(model: dict) -> list[str] | None:
    """Label names that a model was trained with; None where it has only numbers."""
    names = model.get("id2label")
    if not names:
        return None
    labels = [names[key] for key in sorted(names, key=int)]
    return None if all(label.startswith("LABEL_") for label in labels) else labels


def positions(model: dict) -> int:
    """Longest sequence that a model takes; models of words take any."""
    if of_words(model):
        return 1 << 20
    reserved = 2 if model.get("model_type") in ("roberta", "xlm-roberta", "camembert") else 0
    return model.get("max_position_embeddings", 512) - reserved


def micro_batch_size(batch_size: int, config: EngineConfig, world: int) -> int:
    """Sequences of one micro-batch. Raises ValueError where the batch can't be shared out."""
    if batch_size % world:
        raise ValueError(f"batch_size: {batch_size} can't be shared by {world} processes; give a multiple")
    share = batch_size // world
    size = min(config.micro_batch_size or share, share)
    if size < 1 or share % size:
        raise ValueError(f"engine.micro_batch_size: {size} does not divide a process's share, {share}")
    return size
