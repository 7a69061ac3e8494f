"""Settings of what reads and writes data, as dataclasses. Imports no NumPy: the command line reads them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal, get_args

Unit = Literal["token", "word", "chinese_word"]

ProgressMode = Literal["auto", "lines", "json", "none"]
PROGRESS = "DISTILLERY_PROGRESS"  # holds the mode: an environment variable reaches every process of a run


def progress_mode() -> str:
    """The mode that $DISTILLERY_PROGRESS asks for. Raises ValueError for an unknown one."""
    mode = os.environ.get(PROGRESS) or "auto"
    if mode not in get_args(ProgressMode):
        raise ValueError(f"${PROGRESS}: {mode}; give one of {', '.join(get_args(ProgressMode))}")
    return mode


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Metric = Literal["accuracy", "f1", "f1_micro", "f1_macro", "matthews", "pearson_spearman"]

# The metrics that may select the best checkpoint, by kind of task; the first is the default.
METRICS: dict[str, tuple[Metric, ...]] = {
    "classification": ("accuracy", "f1", "f1_micro", "f1_macro", "matthews"),
    "multi_label": ("f1_micro", "f1_macro", "accuracy"),
    "regression": ("pearson_spearman",),
}


@dataclass
class CorpusConfig:
    """Where the text is and how it is cut into documents.

    Args:
        files: Paths, glob patterns or URLs of .txt, .jsonl (both also as .gz, .bz2, .xz, .zst), .parquet,
            Wikipedia's .xml.bz2 dumps; folders saved by `datasets`; or hub:NAME[,CONFIG[,SPLIT]], a
            data set that `datasets` streams (with its commas in quotes). What is named twice is read once.
        documents: In .txt files: `blank_line` (one sentence a line, a blank line between
            documents) or `line` (each line is a document, cut into sentences here).
        text_field: In jsonl, parquet and `datasets`: the field that holds a document's text.
    """

    files: list[str] = field(default_factory=list)
    documents: Literal["blank_line", "line"] = "blank_line"
    text_field: str = "text"


@dataclass
class MaskingConfig:
    """Tokens chosen for masking: 80 % become the mask token, 10 % a random token, 10 % stay.

    Args:
        probability: Share of tokens chosen; 0 masks none.
        most: Most tokens chosen in one training row.
        at_least_one: Choose one token even at probability 0, as the TinyBERT code does.
        unit: What is chosen together: a `token`, a whole `word`, or a `chinese_word` as jieba cuts.
    """

    probability: float = 0.0
    most: int = 20
    at_least_one: bool = False
    unit: Unit = "token"

    @property
    def active(self) -> bool:
        """Whether anything is masked."""
        return self.probability > 0 or self.at_least_one


@dataclass
class PackingConfig:
    """How sentences become rows.

    Args:
        method: `pairs` (two segments, of which the second is a random one half of the time),
            `contiguous_pairs` (always the true next segment) or `full` (one segment).
        max_length: Longest row in tokens, special tokens included.
        short_probability: Share of pair rows that aim at a random shorter length.
        masking: Masking of the input; none by default.
    """

    method: Literal["pairs", "contiguous_pairs", "full"] = "pairs"
    max_length: int = 128
    short_probability: float = 0.1
    masking: MaskingConfig = field(default_factory=MaskingConfig)


@dataclass
class PregenerateConfig:
    """Settings of `distillery pregenerate`.

    Args:
        corpus: The text.
        tokenizer: Folder whose tokenizer is used: the teacher's.
        packing: How sentences become rows.
        variants: Packings of the corpus, each with its own draws (pairs, masks); epochs take them in turn.
        rows_per_block: Sequences in one tar member, 4096 at most: training reads a member whole.
        shard_mb: Megabytes of text (of a compressed file, millions of characters) in one shard file;
            rows are shuffled, and random segments drawn, within it.
        workers: Processes that tokenise and pack; 0 is one for each core.
        slice: K/N: make the K-th of N shares of the corpus. Slices of one corpus, on any nodes, share
            a shards folder; the last to end writes the manifest.
        shards: The shards folder; by default RUN/shards.
        seed: Seed of every draw.
        verify: Make nothing: check every byte of this shard folder and print what it holds.
    """

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    tokenizer: str = ""
    packing: PackingConfig = field(default_factory=PackingConfig)
    variants: int = 1
    rows_per_block: int = 256
    shard_mb: float = 4.0
    workers: int = 0
    slice: str = "1/1"
    shards: str | None = None
    seed: int = 0
    verify: str | None = None

    @property
    def share(self) -> tuple[int, int]:
        """`slice` as the numbers (K, N). Raises ValueError where it is not of that form."""
        first, _, count = self.slice.partition("/")
        if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
            raise ValueError(f"slice: {self.slice}; give K/N with K from 1 to N, such as 2/8")
        return int(first), int(count)


@dataclass
class VocabularyConfig:
    """Settings of `distillery vocabulary`.

    Shards and models go with the very vocabulary that they were made with, so keep it: made again, it may
    differ where pieces are equally frequent.

    Args:
        corpus: The text.
        size: Tokens, the special ones included; fewer where the text yields no more, and more where its
            single characters alone exceed it.
        least: How often a piece must occur to be taken.
        lower_case: Lower-case the text and drop accents.
    """

    corpus: CorpusConfig
    size: int = 30_000
    least: int = 2
    lower_case: bool = True


@dataclass
class StoreConfig:
    """How shards behind a URL are read; local folders need none of it.

    Args:
        retries: Further attempts after a failed read, with doubling waits from half a second to a minute.
        cache: Folder for blocks that were fetched; null keeps none. By default the user's cache folder.
        cache_gb: Size of the cache at most, in gigabytes.
    """

    retries: int = 5
    cache: str | None = "~/.cache/distillery/blocks"
    cache_gb: float = 20.0


@dataclass
class StreamConfig:
    """How a run reads its shards.

    Args:
        workers: Threads that fetch the next rows from a URL while training goes on (one thread for a
            local folder); 0 reads rows only when they are needed.
        damaged: What a block that is missing or damaged does: `fail` ends the run, naming it; `skip`
            takes the rows of the next whole block instead and counts them in the report.
        store: Shards behind a URL.
    """

    workers: int = 4
    damaged: Literal["fail", "skip"] = "fail"
    store: StoreConfig = field(default_factory=StoreConfig)


@dataclass
class TaskConfig:
    """A labelled data set.

    Args:
        train: Training file: .tsv (as GLUE: tabs, no quoting), .csv, .jsonl, these behind a URL too, or
            .parquet; a folder saved by `datasets`; or hub:NAME[,CONFIG[,SPLIT]], which `datasets` fetches.
        dev: File that models are selected and compared on.
        more_dev: Further files that are measured too, {NAME: FILE}, such as MNLI's mismatched one;
            their metrics carry the name.
        text: Column of the sentence; its number (from 0) where files have no header.
        text_pair: Column of the second sentence of a pair task.
        label: Column of the label.
        kind: Classification, multi_label (any number of labels each) or regression (one number).
        labels: The label set in the order of the model's outputs; by default the teacher's, or else
            the training file's: the classes of a data set of `datasets` in its own order, other labels
            sorted.
        separator: What stands between the labels of an example of a multi_label task (in jsonl and
            the like they may be a list of them, or of a 0 or 1 for each of `labels`).
        metric: What the best checkpoint is chosen by; by default accuracy, f1_micro for multi_label,
            or the mean of Pearson and Spearman correlation for regression. f1 is that of the second of
            two classes, and f1_macro where there are more.
        max_length: Longest sequence in tokens; longer ones are cut.
        header: Whether files begin with a line of column names.
    """

    train: str
    dev: str
    more_dev: dict[str, str] = field(default_factory=dict)
    text: str = "sentence"
    text_pair: str | None = None
    label: str = "label"
    kind: Literal["classification", "multi_label", "regression"] = "classification"
    labels: list[str] | None = None
    separator: str = ","
    metric: Metric | None = None
    max_length: int = 128
    header: bool = True

    @property
    def selection(self) -> Metric:
        """The metric that decides which checkpoint is best."""
        return self.metric or METRICS[self.kind][0]

    @property
    def files(self) -> dict[str, str]:
        """Every file by the name of its split."""
        return {"train": self.train, "dev": self.dev, **self.more_dev}


@dataclass
class WordsConfig:
    """The words of a word-level student and where their vectors come from.

    Args:
        vectors: File of word vectors: GloVe or word2vec text (plain or .gz), word2vec binary (.bin) or
            fastText's .vec or .bin. Without one they are trained on `corpus`, and without that taken
            from the teacher: the mean of its embeddings of a word's pieces. Without a teacher they are
            trained on the task's texts.
        corpus: Text that vectors are trained on where there is no file.
        size: Width of the vectors. Those of a file have their own; the teacher's are reduced to it by
            their principal components.
        least: How often a word must occur in the training file to be known.
        most: How many words are known at most: the most frequent ones.
        frozen: Leave the vectors as they are; otherwise they train too.
        lower_case: Lower-case words and drop their accents; off for vectors of cased words.
    """

    vectors: str | None = None
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    size: int = 300
    least: int = 1
    most: int = 50_000
    frozen: bool = False
    lower_case: bool = True


@dataclass
class NoiseConfig:
    """How much noise.

    Args:
        masked: Chance that a word is masked.
        replaced: Chance that a word is replaced by one of the file's with the same part of speech.
        ngram: Chance that an n-gram of the text is drawn.
        longest: Length of the longest n-gram, in words.
        ngrams: What is done with it: `keep` drops all other words, as published; `mask` masks its words,
            as the code of distil-bilstm and iclassifier does.
        most: Largest share of a text's words that is masked or replaced.
        tagger: Finds parts of speech: `textblob` (the Pattern lexicon, offline) or `spacy` with its
            model en_core_web_sm. Chinese words are tagged by jieba.
    """

    masked: float = 0.1
    replaced: float = 0.1
    ngram: float = 0.25
    longest: int = 5
    ngrams: Literal["keep", "mask"] = "mask"
    most: float = 0.5
    tagger: Literal["textblob", "spacy"] = "textblob"

    def check(self) -> None:
        """Refuse chances outside 0 to 1, and n-grams without a word. Raises ValueError."""
        for name in ("masked", "replaced", "ngram", "most"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"noise.{name}: {getattr(self, name)}; give a share, 0 to 1")
        if self.masked + self.replaced > 1:
            raise ValueError("noise: masked and replaced are chances of one draw; together at most 1")
        if self.longest < 1:
            raise ValueError(f"noise.longest: {self.longest}; give 1 or more")


@dataclass
class AugmentConfig:
    """Settings of `distillery augment`: variants of training texts, for a teacher to label.

    Args:
        file: The training file: .tsv, .csv, .jsonl or .parquet, or what else `task.train` takes.
        method: `tinybert` replaces words by what a masked language model or word vectors suggest (Jiao et
            al. 2020); `noise` masks words, replaces them by others of the same part of speech, and masks
            or keeps n-grams (Tang et al. 2019).
        model: `tinybert`: an encoder with a masked-language-model head, such as a pretrain run's model/.
            `noise`: the teacher, for its mask token.
        text: Column of the sentence.
        text_pair: Column of the second sentence; each of the two is varied beside the other's original.
        label: Column of the label, which variants inherit; null where there is none.
        header: Whether the file begins with a line of column names.
        separator: What stands between the labels of an example that has several, as of the task (in
            jsonl and the like they may be a list).
        unit: `word`: words between spaces and punctuation; `chinese_word`: Chinese words as jieba cuts,
            candidates of as many characters.
        variants: Variants tried for each text; those drawn twice count once.
        replaced: `tinybert`: chance that a word is replaced.
        candidates: `tinybert`: most candidates of a word.
        vectors: `tinybert`: file of word vectors that gives candidates for words of several pieces; by
            default the model's own embeddings do.
        precision: `tinybert`: of the model's products. `int8` is faster on a CPU with AVX-512 VNNI; some
            candidates then differ from fp32's.
        noise: Settings of `noise`.
        teacher: A fine-tuned classifier that judges every variant; with `confidence`.
        confidence: Least probability of the teacher's likeliest label; variants below it are left out.
        batch_size: Masked texts of one step of the model; by default as many as come to 768 tokens for each
            thread of a CPU and to 16,384 on a GPU. No output depends on it.
        examples_per_piece: Examples that a process writes at once: the most that it loses when killed.
        seed: Seed of the draws.
    """

    file: str
    model: str
    method: Literal["tinybert", "noise"] = "tinybert"
    text: str = "sentence"
    text_pair: str | None = None
    label: str | None = "label"
    header: bool = True
    separator: str = ","
    unit: Literal["word", "chinese_word"] = "word"
    variants: int = 20
    replaced: float = 0.4
    candidates: int = 15
    vectors: str | None = None
    precision: Literal["fp32", "int8"] = "fp32"
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    teacher: str | None = None
    confidence: float | None = None
    batch_size: int | None = None
    examples_per_piece: int = 512
    seed: int = 0

    @property
    def task(self) -> TaskConfig:
        """The file as a task, for its reader; multi_label, so that labels may be lists."""
        columns = self.text, self.text_pair, self.label or ""
        return TaskConfig(
            self.file, self.file, {}, *columns, "multi_label", header=self.header, separator=self.separator
        )
