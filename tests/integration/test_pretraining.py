"""From plain text to a masked language model, from that to augmented data, and a student of these."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from data_pipeline.settings import (
    AugmentConfig,
    CorpusConfig,
    MaskingConfig,
    NoiseConfig,
    PackingConfig,
    PregenerateConfig,
    TaskConfig,
    VocabularyConfig,
)
from data_pipeline.vocabulary import copy_tokenizer, load_vocabulary
from distill.encoders import Batch
from distill.int8 import has_int8
from distill.preemption import Stopped
from distill.pretrain import build
from distill.settings import (
    FinetuneConfig,
    GeneralConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PretrainConfig,
    StageConfig,
    StudentConfig,
    TaskDistillConfig,
    TeacherConfig,
)
from distill.sources import CorpusSource
from launcher.rank import execute
from tests.helpers import SPECIAL
from tests.processes import ROOT, run_here

SHAPE = StudentConfig(layers=2, hidden_size=32, heads=4, intermediate_size=64)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, tiny_corpus) -> Path:
    """A vocabulary and shards of a text, and a tiny BERT pretrained on them, each in a run folder."""
    folder = tmp_path_factory.mktemp("pretraining")
    corpus = CorpusConfig([tiny_corpus])
    run_here("vocabulary", VocabularyConfig(corpus, size=120), folder / "vocabulary")
    tokenizer = str(folder / "vocabulary" / "model")
    packing = PackingConfig("full", max_length=32)
    run_here("pregenerate", PregenerateConfig(corpus, tokenizer, packing, workers=1), folder / "corpus")
    config = PretrainConfig(
        tokenizer,
        str(folder / "corpus" / "shards"),
        shape=SHAPE,
        masking=MaskingConfig(0.15, unit="word"),
        dropout=0.0,
        stage=StageConfig(12, 16, ObjectiveConfig(mlm=1.0), OptimizerConfig(lr=3e-3)),
    )
    run_here("pretrain", config, folder / "pretrain")
    return folder


def test_a_pretrained_model_fills_masks_better_than_chance(pretrained):
    rows = [json.loads(line) for line in (pretrained / "pretrain" / "metrics.jsonl").open()]
    losses = [row["loss/mlm"] for row in rows]
    size = json.loads((pretrained / "vocabulary" / "summary.json").read_text())["tokens"]
    assert losses[-1] < 0.9 * np.log(size)
    path = pretrained / "pretrain" / "model"
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    inputs = tokenizer("the [MASK] was", return_tensors="pt")
    assert tokenizer.mask_token_id in inputs["input_ids"]
    with torch.no_grad():
        assert model(**inputs).logits.shape == (*inputs["input_ids"].shape, size)


def test_a_vocabulary_spells_its_text(pretrained, tiny_corpus):
    vocabulary = load_vocabulary(str(pretrained / "vocabulary" / "model"))
    assert [vocabulary.tokenizer.id_to_token(n) for n in range(5)] == SPECIAL
    encoding = vocabulary.tokenizer.encode(Path(tiny_corpus).read_text())
    assert vocabulary.unk not in encoding.ids
    assert (encoding.ids[0], encoding.ids[-1]) == (vocabulary.cls, vocabulary.sep)


def test_an_encoder_pretrained_here_is_fine_tuned_like_any(pretrained, tiny_task, tmp_path):
    task = TaskConfig(str(tiny_task / "train.tsv"), str(tiny_task / "dev.tsv"), max_length=24)
    stage = StageConfig(0.5, 16, ObjectiveConfig(labels=1.0))
    model = str(pretrained / "pretrain" / "model")
    for name, shape in (("weights", None), ("shape", SHAPE)):
        config = FinetuneConfig(model, task, shape, dropout=0.3, stage=stage)
        assert run_here("finetune", config, tmp_path / name)["best"]
        assert AutoConfig.from_pretrained(tmp_path / name / "model").hidden_dropout_prob == 0.3


def test_an_encoder_has_the_dropout_it_was_asked_for(pretrained):
    model, bare = str(pretrained / "pretrain" / "model"), str(pretrained / "vocabulary" / "model")
    for config in (
        PretrainConfig(model, ""),
        PretrainConfig(bare, ""),
        PretrainConfig(bare, "", shape=SHAPE),
    ):
        assert build(replace(config, dropout=0.3)).config.hidden_dropout_prob == 0.3


@pytest.mark.parametrize("job", ["general", "pretrain"])
def test_rows_keep_the_packings_length_where_it_is_asked_for(pretrained, tmp_path, monkeypatch, job):
    model, shards = str(pretrained / "pretrain" / "model"), str(pretrained / "corpus" / "shards")
    terms = ObjectiveConfig(**{"hidden" if job == "general" else "mlm": 1.0})
    more = {"pad_to_longest": False, "stage": StageConfig(0.2, 16, terms)}
    shapes, micro_batches = set(), CorpusSource.micro_batches

    def noting(source: CorpusSource, step: int) -> list[Batch]:
        batches = micro_batches(source, step)
        shapes.update((source.reader.by_length, batch.ids.shape[1]) for batch in batches)
        return batches

    monkeypatch.setattr(CorpusSource, "micro_batches", noting)
    config = {
        "general": lambda: GeneralConfig(TeacherConfig(model), shards, student=SHAPE, **more),
        "pretrain": lambda: PretrainConfig(model, shards, **more),
    }[job]()
    run_here(job, config, tmp_path / "run")
    assert shapes == {(False, 32)}


@pytest.fixture(scope="module")
def distilled(pretrained) -> Path:
    """A student of the masked language model, of its masked tokens and hidden states."""
    terms = ObjectiveConfig(logits=1.0, mlm=0.5, hidden=1.0, temperature=2.0)
    shape = replace(SHAPE, layers=1, start="teacher")
    config = GeneralConfig(
        TeacherConfig(str(pretrained / "pretrain" / "model")),
        str(pretrained / "corpus" / "shards"),
        student=shape,
        stage=StageConfig(4, 16, terms, OptimizerConfig(lr=3e-3)),
    )
    run_here("general", config, pretrained / "general")
    return pretrained / "general"


def test_soft_targets_of_masked_tokens_teach_a_student(distilled):
    rows = [json.loads(line) for line in (distilled / "metrics.jsonl").open()]
    for term in ("logits", "mlm", "hidden"):
        assert rows[-1][f"loss/{term}"] < rows[0][f"loss/{term}"]
    model = AutoModelForMaskedLM.from_pretrained(distilled / "student")
    assert model.config.num_hidden_layers == 1


def test_a_student_whose_layers_are_not_compared_may_have_more_than_its_teacher(pretrained, tmp_path):
    config = GeneralConfig(
        TeacherConfig(str(pretrained / "pretrain" / "model")),
        str(pretrained / "corpus" / "shards"),
        student=replace(SHAPE, layers=SHAPE.layers + 1),
        stage=StageConfig(0.2, 16, ObjectiveConfig(logits=1.0)),
    )
    run_here("general", config, tmp_path / "run")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "student")
    assert model.config.num_hidden_layers == SHAPE.layers + 1


def test_such_a_student_is_distilled_on_a_task_like_any(distilled, pretrained, tiny_task, tmp_path):
    task = TaskConfig(str(tiny_task / "train.tsv"), str(tiny_task / "dev.tsv"), max_length=24)
    model, student = str(pretrained / "pretrain" / "model"), StudentConfig(path=str(distilled / "student"))
    stage = StageConfig(0.5, 16, ObjectiveConfig(labels=1.0))
    run_here("finetune", FinetuneConfig(model, task, stage=stage), tmp_path / "teacher")
    config = TaskDistillConfig(TeacherConfig(str(tmp_path / "teacher" / "model")), task, student)
    config.intermediate.epochs = config.prediction.epochs = 0.5
    config.intermediate.batch_size = config.prediction.batch_size = 16
    assert run_here("task", config, tmp_path / "task")["best"]


def augment_config(pretrained: Path, tiny_task: Path, **changes) -> AugmentConfig:
    model = str(pretrained / "pretrain" / "model")
    file = str(tiny_task / "dev.tsv")
    return AugmentConfig(file, model, variants=4, examples_per_piece=16, **changes)


@pytest.fixture(scope="module")
def augmented(pretrained, tiny_task, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("augment") / "run"
    run_here("augment", augment_config(pretrained, tiny_task, batch_size=8), folder)
    return folder


def test_augmented_data_are_the_examples_and_their_variants(augmented, tiny_task):
    rows = [json.loads(line) for line in (augmented / "augmented.jsonl").open()]
    examples = [line.split("\t") for line in (tiny_task / "dev.tsv").read_text().splitlines()[1:]]
    summary = json.loads((augmented / "summary.json").read_text())
    assert summary["examples"] == len(examples)
    assert len(rows) == len(examples) + summary["variants"]
    assert summary["variants"] > len(examples)
    firsts = {}
    for row in rows:
        firsts.setdefault(row["origin"], row)
    assert [firsts[number]["sentence"] for number in range(len(examples))] == [e[0] for e in examples]
    assert all(row["label"] == examples[row["origin"]][1] for row in rows)


def by_two_processes(pretrained: Path, tiny_task: Path, run: Path, *more: str) -> bytes:
    """What the command writes in batches of 256."""
    flags = ["--file", str(tiny_task / "dev.tsv"), "--model", str(pretrained / "pretrain" / "model")]
    flags += ["--variants", "4", "--examples_per_piece", "16", "--batch_size", "256", *more]
    answer = subprocess.run(
        [sys.executable, "-m", "launcher.cli", "augment", *flags, "--run", str(run), "--processes", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    return (run / "augmented.jsonl").read_bytes()


def test_processes_and_batches_change_no_byte(pretrained, augmented, tiny_task, tmp_path):
    expected = (augmented / "augmented.jsonl").read_bytes()
    assert by_two_processes(pretrained, tiny_task, tmp_path / "two") == expected


@pytest.mark.skipif(not has_int8(torch.device("cpu")), reason="8-bit products need AVX-512 VNNI")
def test_in_8_bits_processes_and_batches_change_no_byte(pretrained, tiny_task, tmp_path):
    config = augment_config(pretrained, tiny_task, batch_size=8, precision="int8")
    run_here("augment", config, tmp_path / "one")
    found = (tmp_path / "one" / "augmented.jsonl").read_bytes()
    assert by_two_processes(pretrained, tiny_task, tmp_path / "two", "--precision", "int8") == found


def test_a_resumed_augmentation_redoes_what_is_missing(pretrained, augmented, tiny_task, tmp_path):
    shutil.copytree(augmented / "pieces", tmp_path / "run" / "pieces")
    (tmp_path / "run" / "pieces" / "000001.jsonl").unlink()
    (tmp_path / "run" / "pieces" / "000002.partial").write_text("half")
    kept = (tmp_path / "run" / "pieces" / "000000.jsonl").stat().st_mtime_ns
    run_here("augment", augment_config(pretrained, tiny_task), tmp_path / "run")
    expected = (augmented / "augmented.jsonl").read_bytes()
    assert (tmp_path / "run" / "augmented.jsonl").read_bytes() == expected
    assert (tmp_path / "run" / "pieces" / "000000.jsonl").stat().st_mtime_ns == kept


def test_variants_that_the_teacher_is_unsure_of_are_left_out(pretrained, augmented, tiny_task, tmp_path):
    teacher = tmp_path / "teacher"
    vocabulary = pretrained / "pretrain" / "model"
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(vocabulary).save_pretrained(teacher)
    copy_tokenizer(str(vocabulary), teacher)
    all_rows = [json.loads(line) for line in (augmented / "augmented.jsonl").open()]
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    with torch.no_grad():
        sure = [
            model(**tokenizer(row["sentence"], return_tensors="pt", truncation=True, max_length=48))
            .logits.softmax(-1)
            .max()
            .item()
            for row in all_rows
        ]
    ordered = sorted(sure)
    middle = len(ordered) // 2
    confidence = (ordered[middle] + ordered[middle + 1]) / 2
    originals = {}
    for number, row in enumerate(all_rows):
        originals.setdefault(row["origin"], number)
    expected = [
        row
        for number, row in enumerate(all_rows)
        if sure[number] >= confidence or originals[row["origin"]] == number
    ]
    assert len(originals) < len(expected) < len(all_rows)
    config = augment_config(pretrained, tiny_task, teacher=str(teacher), confidence=confidence)
    run_here("augment", config, tmp_path / "run")
    assert [json.loads(line) for line in (tmp_path / "run" / "augmented.jsonl").open()] == expected
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["variants"] == len(expected) - len(originals)
    assert summary["unsure"] >= len(all_rows) - len(expected)  # duplicates are judged too


def test_an_augmentation_stops_between_pieces_where_it_is_asked_to(
    pretrained, augmented, tiny_task, tmp_path
):
    """As under Ray, where a wish to stop is a file."""
    config = augment_config(pretrained, tiny_task)
    with (
        patch("distill.augment.asked", side_effect=[False, True]),
        pytest.raises(Stopped, match="as asked"),
    ):
        run_here("augment", config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "pieces").glob("0*")] == ["000000.jsonl"]
    execute("augment", config, tmp_path / "run")
    expected = (augmented / "augmented.jsonl").read_bytes()
    assert (tmp_path / "run" / "augmented.jsonl").read_bytes() == expected


def test_augmented_data_train_a_student_by_the_tasks_own_settings(augmented, tiny_task, tmp_path):
    task = TaskConfig(str(augmented / "augmented.jsonl"), str(tiny_task / "dev.tsv"), max_length=24)
    stage = StageConfig(0.2, 16, ObjectiveConfig(labels=1.0), OptimizerConfig(lr=1e-3))
    config = FinetuneConfig(None, task, shape=StudentConfig("mean_bilstm"), stage=stage)
    assert run_here("finetune", config, tmp_path / "run")["best"]


def test_each_text_of_a_pair_varies_beside_the_others_original(pretrained, tmp_path):
    table = tmp_path / "pairs.tsv"
    table.write_text("a\tb\tlabel\nthe kitchen was dreadful\tthe garden was lovely\t1\n")
    changes = {"text": "a", "text_pair": "b", "method": "noise", "noise": NoiseConfig(masked=0.5, ngram=0)}
    config = AugmentConfig(str(table), str(pretrained / "pretrain" / "model"), variants=6, **changes)
    run_here("augment", config, tmp_path / "run")
    original, *rows = [json.loads(line) for line in (tmp_path / "run" / "augmented.jsonl").open()]
    assert {key: original[key] for key in "ab"} == {
        "a": "the kitchen was dreadful", "b": "the garden was lovely"
    }  # fmt: skip
    assert {(row["a"] == original["a"], row["b"] == original["b"]) for row in rows} == {
        (True, False), (False, True)
    }  # fmt: skip
    assert any("[MASK]" in row["a"] + row["b"] for row in rows)
