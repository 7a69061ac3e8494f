"""What is refused of the parts that several jobs' settings are made of: stages, objectives, corpora.

As in distill/checks.py: nothing but files is read, without torch, and every refusal is one line.
"""

from __future__ import annotations

import math

from data_pipeline.settings import AugmentConfig, MaskingConfig, StoreConfig
from data_pipeline.store import ShardFolder
from data_pipeline.stream import CorpusReader
from data_pipeline.vocabulary import load_vocabulary
from data_pipeline.word_vectors import check_vectors
from distill.custom import check_name, name_of
from distill.layer_map import layer_map
from distill.model_facts import check_weights, model_config, of_words
from distill.number_checks import check_least
from distill.schedule import ScheduleConfig
from distill.settings import (
    EngineConfig,
    GeneralConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PretrainConfig,
    RecordConfig,
    StageConfig,
    TaskDistillConfig,
)
from distill.student_checks import is_of_words
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
    store = config.stream.store
    if config.stream.workers < 0 or store.retries < 0 or not 0 < store.cache_gb < math.inf:
        raise ValueError("stream: workers and store.retries must be 0 or more, store.cache_gb above 0")
    for shards in [config.shards] if isinstance(config.shards, str) else config.shards:
        folder = ShardFolder(shards, store)
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
    # Made for what its constructor refuses: a batch that processes can't share, corpora that don't match.
    CorpusReader(config.shards, config.stage.batch_size, config.seed, 0, processes, config=config.stream)


def check_masked_head(path: str, name: str) -> None:
    """Refuse a model that can't tell masked tokens, as ELECTRA's discriminator can't."""
    heads = {*(model_config(path, name).get("architectures") or [])} - {"ElectraForPreTraining"}
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
    check_weights("model", config.model)
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


def compares_answers(stage: StageConfig) -> bool:
    """Whether a stage trains the student's answers, so that these are measured on dev."""
    objective = stage.objective
    answers = objective.logits or objective.logits_mse or objective.labels
    return bool(answers or (objective.custom and not objective.custom_layers))


def runs_beside(config: TaskDistillConfig) -> bool:
    """Whether the teacher gives its logits while the student trains; otherwise they are stored."""
    if config.teacher.ensemble or config.teacher.outputs:
        return False
    if not config.student.path:
        return config.student.kind == "transformer"
    own, teacher = load_vocabulary(config.student.path), load_vocabulary(config.teacher.path)
    return own.fingerprint == teacher.fingerprint


def check_stage(
    name: str, stage: StageConfig, engine: EngineConfig, processes: int, measured: bool
) -> None:
    """Refuse a stage whose numbers don't fit one another, or that asks for measurements it has not."""
    if not 0 < stage.epochs < math.inf:
        raise ValueError(f"{name}.epochs: {stage.epochs}; give a number above 0")
    check_least(stage, ("batch_size",), f"{name}.")
    if stage.evaluate_every is not None and stage.evaluate_every < 1:
        raise ValueError(f"{name}.evaluate_every: {stage.evaluate_every}; give 1 or more, or null")
    if stage.evaluate_every and not measured:
        raise ValueError(f"{name}.evaluate_every: nothing here is measured on dev; leave it out")
    check_schedule(f"{name}.schedule", stage.schedule)
    check_optimizer(f"{name}.optimizer", stage.optimizer, engine)
    check_least(engine, ["skip_non_finite"], "engine.", least=0)
    if not 0 <= engine.patience <= LONGEST_PATIENCE:
        raise ValueError(f"engine.patience: {engine.patience}; give 1 to {LONGEST_PATIENCE}, or 0")
    micro_batch_size(stage.batch_size, engine, processes)


def check_optimizer(name: str, optimizer: OptimizerConfig, engine: EngineConfig) -> None:
    """Refuse numbers that can't be, and what an optimizer can't do under the engine's settings."""
    if not 0 < optimizer.lr < math.inf:
        raise ValueError(f"{name}.lr: {optimizer.lr}; give a number above 0")
    for setting in ("beta1", "beta2"):
        if not 0 <= (value := getattr(optimizer, setting)) < 1:
            raise ValueError(f"{name}.{setting}: {value}; give 0 or more, below 1")
    check_least(optimizer, ("weight_decay", "eps", "clip"), f"{name}.", least=0)
    if optimizer.name == "bert_adam" and (engine.zero or engine.precision not in ("auto", "fp32")):
        raise ValueError(f"{name}: bert_adam runs with engine.zero 0 in fp32 only")
    if optimizer.name == "lamb" and engine.zero:
        raise ValueError(f"{name}: lamb sees whole tensors; give engine.zero 0, or adamw")
    if optimizer.name == "lamb" and not optimizer.weight_decay > 0:
        raise ValueError(
            f"{name}.weight_decay: {optimizer.weight_decay}, where lamb is plain Adam; "
            "give a small one, such as 0.01, or adamw"
        )
    if optimizer.name == "lamb" and engine.precision == "fp16":
        raise ValueError(f"{name}: lamb does not run in fp16; give engine.precision bf16 or fp32")


def check_schedule(name: str, schedule: ScheduleConfig) -> None:
    """Refuse a schedule that can't be."""
    check_least(schedule, ["cycles"], f"{name}.")
    if not 0 <= schedule.warmup <= 1:
        raise ValueError(f"{name}.warmup: {schedule.warmup}; give a share, 0 to 1")


def check_record(record: RecordConfig) -> None:
    """Refuse numbers of steps or checkpoints below 1, and trackers that are not installed."""
    check_least(record, ("log_every", "save_every", "keep"), "record.")
    if record.profile < 0:
        raise ValueError(f"record.profile: {record.profile}; give a number of steps, 0 for none")
    check_trackers(record.trackers)


def check_terms(name: str, objective: ObjectiveConfig, allowed: tuple[str, ...]) -> None:
    """Refuse weights that are negative, all zero, or on terms this job does not have."""
    weights = {term: getattr(objective, term) for term in TERMS}
    for term, weight in weights.items():
        if not 0 <= weight < math.inf or (weight and term not in allowed):
            raise ValueError(
                f"{name}.objective.{term}: {weight}; this job takes {', '.join(allowed)}, 0 or more"
            )
    for thing, weight in objective.custom.items():
        check_name(f"{name}.objective.custom", thing)
        if not 0 < weight < math.inf or "custom" not in allowed:
            raise ValueError(
                f"{name}.objective.custom: {name_of(thing)} with {weight}; this job takes "
                f"{', '.join(allowed)}, above 0"
            )
    if objective.custom_layers and not objective.custom:
        raise ValueError(f"{name}.objective.custom_layers: there is no custom term; leave it out")
    if not any(weights.values()) and not objective.custom:
        raise ValueError(
            f"{name}.objective: every term is 0; give {' or '.join(allowed)} a weight{_or_skip(name)}"
        )
    if not 0 < objective.temperature < math.inf:
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
                f"{', '.join(LAYERS)} to 0 and custom_layers to false{_or_skip(name)}"
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


def _or_skip(name: str) -> str:
    """The way out that a task's first stage has beside others."""
    return f", or leave the stage out: --{name}.epochs 0" if name == "intermediate" else ""


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


def micro_batch_size(batch_size: int, config: EngineConfig, world: int) -> int:
    """Sequences of one micro-batch. Raises ValueError where the batch can't be shared out."""
    if batch_size % world:
        raise ValueError(f"batch_size: {batch_size} can't be shared by {world} processes; give a multiple")
    share = batch_size // world
    size = share if config.micro_batch_size is None else min(config.micro_batch_size, share)
    if size < 1 or share % size:
        raise ValueError(f"engine.micro_batch_size: {size} does not divide a process's share, {share}")
    return size
