"""Settings of the training jobs, as dataclasses. Imports no torch: the command line reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from data_pipeline.settings import MaskingConfig, StreamConfig, TaskConfig, WordsConfig
from distill.custom import Named
from distill.schedule import ScheduleConfig

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Kind = Literal["transformer", "bilstm", "bilstm_max", "mean_bilstm", "cnn", "densenet_cnn", "densenet_dsa"]


@dataclass
class StudentConfig:
    """The student: a trained one, or a shape that starts from random weights.

    Args:
        kind: `transformer`, of the teacher's family and vocabulary; or a student of whole words,
            which learns from logits and labels only: bilstm (Tang et al. 2019), bilstm_max,
            mean_bilstm, cnn, densenet_cnn, densenet_dsa. Their shapes are fixed; a learning rate of
            about 1e-3 suits them.
        words: Words and word vectors of a student of whole words.
        path: Folder of a trained student (a general run's student/); its kind and shape are used.
        start: Where no path is given: `random` weights, or the `teacher`'s: an even choice of its layers,
            and of their units where the student is narrower.
        layers: Layers, where no path is given.
        hidden_size: Width.
        heads: Attention heads; must divide the width.
        intermediate_size: Width of the feed-forward layer.
        dropout: Dropout in training. A small student is distilled better without; the originals
            use 0.1.
        cls: A model class of one's own instead of a kind, `my_module.MyStudent` or from Python the class
            itself: docs/own_student.md. It reads the teacher's tokens and learns from logits and labels.
        arguments: Arguments of that class's configuration.
    """

    kind: Kind = "transformer"
    words: WordsConfig = field(default_factory=WordsConfig)
    path: str | None = None
    start: Literal["random", "teacher"] = "random"
    layers: int = 4
    hidden_size: int = 312
    heads: int = 12
    intermediate_size: int = 1200
    dropout: float = 0.0
    cls: Named | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class TeacherConfig:
    """The teacher: any Hugging Face encoder folder, or a student saved by any run.

    Args:
        path: Model folder (or hub name where there is a network).
        precision: Of its matrix products. `auto` is bf16 where the hardware multiplies bf16 matrices
            (GPUs since Ampere, CPUs with AMX), else int8 on CPUs with AVX-512 VNNI, else fp32. Models
            of whole words stay in fp32. Logits that are stored are never computed in int8, but in bf16
            on AMD's CPUs with AVX-512 BF16 too. In int8 a teacher is about twice as fast as in
            fp32 and its signal a few percent off, which students hardly notice (docs/benchmarks.md).
        dropout: Leave the teacher's dropout live, as the TinyBERT code does. Off by default.
        ensemble: Further teachers with their weights, {FOLDER: WEIGHT, ...}: logits are averaged with
            those of `path`, whose weight is 1. Each reads the texts with its own tokenizer.
        outputs: The outputs/ folder of a label run, whose logits are then used instead of running
            the teacher again.
    """

    path: str
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    dropout: bool = False
    ensemble: dict[str, float] = field(default_factory=dict)
    outputs: str | None = None

    @property
    def members(self) -> dict[str, float]:
        """Every teacher's folder and weight."""
        return {self.path: 1.0, **self.ensemble}


@dataclass
class ObjectiveConfig:
    """The loss: a weighted sum of named terms. A term of weight 0 is not computed.

    Args:
        attention: Squared error of attention scores before softmax (TinyBERT).
        relation: Divergence of relations between tokens (MiniLM); the numbers of heads may differ.
            `layer_map: last` compares the last layers only, as published.
        relations: Which relations: `qk` is the attention distribution; [qk, vv] is MiniLM, [qq, kk, vv]
            MiniLMv2.
        relation_heads: Heads that both sides are cut into for it, a divisor of both widths; 0 keeps
            each model's own.
        hidden: Squared error of projected hidden states, the embedding output included.
        logits: Kullback-Leibler divergence from the teacher's softened outputs, times the squared
            temperature (Hinton et al. 2015); squared error for regression. In `general` over the
            vocabulary, at masked tokens (DistilBERT, Sanh et al. 2019).
        logits_mse: Squared error of the logits, summed over the classes (Tang et al. 2019).
        labels: Cross-entropy with the labels (binary for each where an example may have several);
            squared error for regression.
        mlm: Cross-entropy of masked tokens (Devlin et al. 2019).
        custom: Terms of one's own with their weights, {my_module.my_term: 1.0}, or from Python the
            functions or module classes themselves as keys: docs/own_student.md.
        custom_layers: Give custom terms hidden states too, of the layers that the layer map names.
        temperature: Softens the logits of both sides.
        layer_map: `uniform`, `last`, or the teacher layer for each student layer.
        projection: One projection for every layer, or one for each.
        normalise: `valid` averages over real tokens, `all` over padding too, as the paper's code does:
            rows are then padded to task.max_length (in `general`, which needs pad_to_longest false, to
            the packing's max_length).
    """

    attention: float = 0.0
    relation: float = 0.0
    relations: list[Literal["qk", "qq", "kk", "vv"]] = field(default_factory=lambda: ["qq", "kk", "vv"])
    relation_heads: int = 0
    hidden: float = 0.0
    logits: float = 0.0
    logits_mse: float = 0.0
    labels: float = 0.0
    mlm: float = 0.0
    custom: dict[Named, float] = field(default_factory=dict)
    custom_layers: bool = False
    temperature: float = 1.0
    layer_map: Literal["uniform", "last"] | list[int] = "uniform"
    projection: Literal["per_layer", "shared"] = "per_layer"
    normalise: Literal["valid", "all"] = "valid"


@dataclass
class OptimizerConfig:
    """The optimizer.

    Args:
        name: `adamw`; `lamb` (Adam whose step on each tensor is scaled to the tensor's norm: for
            batches of thousands; ZeRO 0 and a weight_decay above 0 only); or `bert_adam` (no
            bias correction, each tensor's gradient clipped by itself: what the TinyBERT code trains
            with; ZeRO 0 in fp32 only).
        lr: Highest learning rate.
        weight_decay: Decoupled; none on biases and layer norms.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: Added to the denominator.
        clip: Largest gradient norm; 0 clips nothing.
    """

    name: Literal["adamw", "lamb", "bert_adam"] = "adamw"
    lr: float = 5e-5
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    clip: float = 1.0


@dataclass
class EngineConfig:
    """How DeepSpeed runs the student.

    Args:
        zero: ZeRO stage: what is shared out over the processes (0 nothing, 1 optimizer state,
            2 gradients too, 3 weights too).
        precision: Of the student; `auto` is bf16 on a GPU (since Ampere) and fp32 elsewhere. In fp16
            ZeRO is 1 at least.
        micro_batch_size: Sequences a process takes at once; the rest of its share is
            accumulated, in the student's precision. By default its whole share.
        patience: Seconds that ranks wait for one that does not join a step's sums, before the run ends
            and names it; 0 leaves that to the collectives, which give up after 30 minutes, naming none.
        skip_non_finite: How many steps whose loss or gradient is not finite a stage may leave out, each by
            going back to the newest checkpoint; one more ends the run. Above 0 every step is checked,
            which waits for the device.
    """

    zero: Literal[0, 1, 2, 3] = 0
    precision: Precision = "auto"
    micro_batch_size: int | None = None
    patience: float = 600.0
    skip_non_finite: int = 0


@dataclass
class RecordConfig:
    """What is recorded of a training run on its way.

    Args:
        log_every: Steps between lines of metrics; one is also written before a measurement or checkpoint.
        save_every: Steps between checkpoints; the last step always makes one.
        keep: Checkpoints kept.
        profile: Steps to profile, after the first two, into RUN/trace-STAGE.json, which
            ui.perfetto.dev and chrome://tracing open.
        trackers: Where metrics go besides RUN/metrics.jsonl: [tensorboard, wandb, mlflow] or some of
            them; each needs its package.
    """

    log_every: int = 20
    save_every: int = 500
    keep: int = 2
    profile: int = 0
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = field(default_factory=list)


@dataclass
class StageConfig:
    """One stage of training.

    Args:
        epochs: Passes over the data; may be a fraction; in `task` 0 skips the stage.
        batch_size: Sequences of a step over all processes.
        objective: The loss.
        optimizer: The optimizer.
        schedule: The learning-rate schedule.
        evaluate_every: Steps between measurements on dev (task stages with logits or labels);
            by default once an epoch.
    """

    epochs: float = 1.0
    batch_size: int = 32
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluate_every: int | None = None


def _general_stage() -> StageConfig:
    return StageConfig(
        batch_size=256,
        objective=ObjectiveConfig(attention=1.0, hidden=1.0),
        optimizer=OptimizerConfig(lr=1e-4),
    )


def masking_of_models() -> MaskingConfig:
    """The default masking of tokens that a model is to predict: BERT's 15 %."""
    return MaskingConfig(probability=0.15, most=1000)


@dataclass
class GeneralConfig:
    """Settings of `distillery general`: distillation over a corpus.

    Args:
        teacher: The pretrained encoder.
        shards: The shards/ folder of a pregenerate run, or its URL; or several with weights,
            {FOLDER: WEIGHT, ...}: every batch then holds rows of each in that proportion.
        stream: How the shards are read.
        student: The student.
        stage: The training.
        masking: What is masked, anew in every epoch, where the objective has logits (then soft targets
            of the masked tokens, from a teacher with a masked-language-model head) or mlm.
        pad_to_longest: Fill a step with rows of similar lengths and pad them to the longest; if false,
            with rows of any length, padded to the packing's max_length.
        engine: DeepSpeed.
        record: Metrics and checkpoints.
        seed: Seed of weights, order, masks and dropout.
    """

    teacher: TeacherConfig
    shards: str | dict[str, float]
    stream: StreamConfig = field(default_factory=StreamConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    stage: StageConfig = field(default_factory=_general_stage)
    masking: MaskingConfig = field(default_factory=masking_of_models)
    pad_to_longest: bool = True
    engine: EngineConfig = field(default_factory=EngineConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    seed: int = 0

    @property
    def masks(self) -> bool:
        """Whether tokens are masked for the student and its teacher."""
        return bool(self.stage.objective.logits or self.stage.objective.mlm)


def _pretrain_stage() -> StageConfig:
    return StageConfig(
        batch_size=256,
        objective=ObjectiveConfig(mlm=1.0),
        optimizer=OptimizerConfig(lr=1e-4),
    )


@dataclass
class PretrainConfig:
    """Settings of `distillery pretrain`: masked language modelling over a corpus.

    Args:
        model: The encoder to train further, any with a masked-language-model class in transformers; or
            the folder of a `vocabulary` run.
        shards: The shards/ folder of a pregenerate run without masking, or its URL; or several with
            weights.
        stream: How the shards are read.
        shape: Start from random weights of this shape, of the model's family and vocabulary.
        masking: What is masked, anew in every epoch.
        dropout: Dropout in training.
        stage: The training.
        pad_to_longest: As in `general`.
        engine: DeepSpeed.
        record: Metrics and checkpoints.
        seed: Seed of weights, order, masks and dropout.
    """

    model: str
    shards: str | dict[str, float]
    stream: StreamConfig = field(default_factory=StreamConfig)
    shape: StudentConfig | None = None
    masking: MaskingConfig = field(default_factory=masking_of_models)
    dropout: float = 0.1
    stage: StageConfig = field(default_factory=_pretrain_stage)
    pad_to_longest: bool = True
    engine: EngineConfig = field(default_factory=EngineConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    seed: int = 0


def _finetune_stage() -> StageConfig:
    return StageConfig(epochs=3.0, objective=ObjectiveConfig(labels=1.0))


@dataclass
class FinetuneConfig:
    """Settings of `distillery finetune`: training on labels, of a teacher or a baseline.

    Args:
        model: Model folder: weights, shape and tokenizer. null for a shape of whole words that takes
            no vectors from it.
        task: The labelled data.
        shape: Start from random weights of this shape instead of the model's: a baseline that
            shares the model's tokenizer, or a model of whole words.
        dropout: Dropout in training.
        stage: The training.
        engine: DeepSpeed.
        record: Metrics and checkpoints.
        seed: Seed of weights, order and dropout.
    """

    model: str | None
    task: TaskConfig
    shape: StudentConfig | None = None
    dropout: float = 0.1
    stage: StageConfig = field(default_factory=_finetune_stage)
    engine: EngineConfig = field(default_factory=EngineConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    seed: int = 0


def _intermediate_stage() -> StageConfig:
    return StageConfig(
        epochs=3.0,
        objective=ObjectiveConfig(attention=1.0, hidden=1.0),
        schedule=ScheduleConfig(name="constant", warmup=0.0),
    )


def _prediction_stage() -> StageConfig:
    return StageConfig(
        epochs=3.0,
        objective=ObjectiveConfig(logits=1.0),
        optimizer=OptimizerConfig(lr=3e-5),
    )


@dataclass
class TaskDistillConfig:
    """Settings of `distillery task`: two-step task distillation (TinyBERT).

    Args:
        teacher: A teacher fine-tuned on the task (a finetune run's model/).
        task: The labelled data.
        student: The student: best a general run's student/.
        intermediate: First step: attention scores and hidden states. Skipped for students of words.
        prediction: Second step: the teacher's outputs.
        engine: DeepSpeed.
        record: Metrics and checkpoints.
        seed: Seed of weights, order and dropout.
    """

    teacher: TeacherConfig
    task: TaskConfig
    student: StudentConfig = field(default_factory=StudentConfig)
    intermediate: StageConfig = field(default_factory=_intermediate_stage)
    prediction: StageConfig = field(default_factory=_prediction_stage)
    engine: EngineConfig = field(default_factory=EngineConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    seed: int = 0


@dataclass
class TextGcnConfig:
    """Settings of `distillery textgcn`: classification by a graph of texts and words (Yao et al. 2019).

    Args:
        task: The labelled data, single texts of one class each.
        hidden_size: Width of the first layer.
        window: Words within which two words count as neighbours.
        least: How often a word must occur to be a node.
        most: Words that are nodes at most.
        epochs: Steps over the whole graph; the best on dev is reported.
        lr: Learning rate of Adam.
        dropout: Before either layer.
        seed: Seed of weights and dropout.
    """

    task: TaskConfig
    hidden_size: int = 200
    window: int = 20
    least: int = 1
    most: int = 50_000
    epochs: int = 200
    lr: float = 0.02
    dropout: float = 0.5
    seed: int = 0


@dataclass
class LabelConfig:
    """Settings of `distillery label`: a teacher's logits for a task's files, written once.

    Args:
        teacher: The teacher, or several.
        task: The labelled data; `train`, `dev` and `more_dev` are labelled.
        batch_size: Sequences of a step of one process.
        rows_per_file: Examples whose logits share a file; a killed run redoes at most so many.
    """

    teacher: TeacherConfig
    task: TaskConfig
    batch_size: int = 64
    rows_per_file: int = 8192


@dataclass
class EvaluateConfig:
    """Settings of `distillery evaluate`: accuracy, size and speed of models on one task's dev file.

    Args:
        models: For each row of the table its model folders: several are seeds of one model.
        task: The labelled data.
        reference: Name of the row that speed-ups are relative to; by default the first.
        batch_size: Sequences of a step.
        latency_repeats: Timed forwards of each model, at each batch size.
        latency_batches: Batch sizes that are timed.
        latency: Measure latency; off saves time where only accuracy is wanted.
        predictions: Write RUN/predictions-NAME.jsonl with logits of the row's first model.
        submit: Files without labels, {NAME: FILE, ...}, such as {AX: diagnostic.tsv}: the first model of
            each row answers them in RUN/submission-ROW/NAME.tsv as GLUE's server takes them. Where NAME
            is CoLA, SST-2, MRPC, QQP or WNLI, answers are the classes' numbers instead of their names.
        classes: Model classes of one's own that folders hold, [my_module.MyStudent].
    """

    models: dict[str, list[str]]
    task: TaskConfig
    reference: str | None = None
    batch_size: int = 64
    latency_repeats: int = 100
    latency_batches: list[int] = field(default_factory=lambda: [1, 32])
    latency: bool = True
    predictions: bool = True
    submit: dict[str, str] = field(default_factory=dict)
    classes: list[Named] = field(default_factory=list)


@dataclass
class ExportConfig:
    """Settings of `distillery export`: a trained model to a folder with ONNX files and a model card.

    Args:
        model: Model folder of any kind: a student, a teacher, whole words or NEZHA.
        task: The labelled data that accuracy is measured on, and latency with it.
        int8: Write a dynamically quantised file too.
        torch_export: Write RUN/model/model.pt2 too, which torch.export.load reads without transformers;
            not for models of whole words.
        push_to_hub: Upload RUN/model under this name, OWNER/NAME, to the Hugging Face hub, where you are
            logged in; a new repository is private.
        opset: ONNX operator set, 18 to 20; by default 20.
        batch_size: Sequences of a step while accuracy is measured.
        latency_repeats: Timed forwards of each form, at each batch size.
        latency_batches: Batch sizes that are timed.
        seed: Seed of the sequences that ONNX is compared with torch on.
        classes: Model classes of one's own that the folder may hold, [my_module.MyStudent].
    """

    model: str
    task: TaskConfig | None = None
    int8: bool = True
    torch_export: bool = False
    push_to_hub: str | None = None
    opset: int | None = None
    batch_size: int = 64
    latency_repeats: int = 100
    latency_batches: list[int] = field(default_factory=lambda: [1, 32])
    seed: int = 0
    classes: list[Named] = field(default_factory=list)


@dataclass
class PredictConfig:
    """Settings of `distillery predict`: texts to labels with probabilities, in the order they come.

    Args:
        model: Model folder of any kind; of an export its model/.
        input: File of texts; `-` is standard input.
        format: `lines` (one text a line), tsv, csv or jsonl; `auto` goes by the file's ending, and is
            `lines` for .txt and unknown ones, and for standard input.
        text: Column of the text, in files with columns.
        text_pair: Column of the second text of a pair; in `lines` it stands after a tab.
        header: Whether a tsv or csv begins with a line of column names; without one columns are numbers.
        output: File to write; `-` is standard output.
        answers: Form of the answers: jsonl, with the texts, or tsv.
        runtime: `torch`, or a file of an export: `onnx`, or `onnx_int8`.
        max_length: Longest sequence in tokens; longer ones are cut. By default what the model was trained
            with, as its tokenizer_config.json says, else 128.
        batch_size: Sequences of a step.
        window: Texts that are read ahead and sorted by length; a terminal is answered line by line.
        classes: Model classes of one's own that the folder may hold, [my_module.MyStudent].
    """

    model: str
    input: str = "-"
    format: Literal["auto", "lines", "tsv", "csv", "jsonl"] = "auto"
    text: str = "sentence"
    text_pair: str | None = None
    header: bool = True
    output: str = "-"
    answers: Literal["jsonl", "tsv"] = "jsonl"
    runtime: Literal["torch", "onnx", "onnx_int8"] = "torch"
    max_length: int | None = None
    batch_size: int = 32
    window: int = 1024
    classes: list[Named] = field(default_factory=list)
