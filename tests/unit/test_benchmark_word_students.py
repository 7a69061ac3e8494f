"""Benchmark `word_students`: its figures, and that each side does what its table says."""

import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from benchmarks import word_students
from benchmarks.word_students import STUDENTS, TURN, Settings, original, ours, summarise
from tests.processes import join_group_of_one

# Originals in a few lines, with the names that the benchmark relies on. SEEN: shapes of their inputs.
MEAN = """
import torch
from torch import nn

SEEN, MADE = [], []


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.dense = nn.Embedding(30000, 4), nn.Linear(4, 2)
        MADE.append(self)

    def forward(self, ids):
        SEEN.append(tuple(ids.shape))
        return self.dense(self.embed(ids).mean(dim=1))
"""
ICLASSIFIER = """
import numpy
from mean import Mean


class TextGloveCNN(Mean):
    def __init__(self, config, vectors, labels):
        super().__init__()
        assert numpy.load(vectors).shape == (14816, 300) and config["n_ctx"] == 100 and labels == 2
"""
KNOWLEDGE_DISTILLATION = """
from mean import Mean


class biLSTM(Mean):
    def __init__(self, config):
        super().__init__()
        assert config.num_classes == 2
"""
DISTIL_BILSTM = """
from mean import Mean
from torchtext import data
from utils import load_data


class BiLSTMClassifier(Mean):
    def __init__(self, classes, words, width, hidden, dense, dropout_rate):
        super().__init__()

    def forward(self, ids, lengths):
        assert (lengths == (ids != 0).sum(dim=0)).all()
        return super().forward(ids.T), None
"""
TRAINER = """
import torch


class LSTMTrainer:
    def __init__(self, model, device, loss, lr, val_interval, checkpt_interval):
        self.model, self.optimizer = model, torch.optim.Adam(model.parameters(), lr=lr)

    def train_step(self, batch):
        loss = ((self.model(*batch.text)[0] - batch.label) ** 2).sum()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
"""


@pytest.fixture
def checkouts(tmp_path: Path, monkeypatch) -> Path:
    """The folder of three made-up originals; what is imported from them is forgotten after the test."""
    files = {
        "iclassifier/model/__init__.py": ICLASSIFIER,
        "iclassifier/configs/config-glove-cnn.json": '{"n_ctx": 100}',
        "KnowledgeDistillation/models/__init__.py": "",
        "KnowledgeDistillation/models/biLSTM.py": KNOWLEDGE_DISTILLATION,
        "distil-bilstm/train_bilstm.py": DISTIL_BILSTM,
        "distil-bilstm/trainer.py": TRAINER,
        **{f"{student.repository}/mean.py": MEAN for student in STUDENTS.values()},
    }
    for name, text in files.items():
        path = tmp_path / "checkouts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "checkouts"
    for name in (
        "mean",
        "model",
        "models",
        "models.biLSTM",
        "train_bilstm",
        "trainer",
        *word_students.UNUSED,
    ):
        if not hasattr(sys.modules.get(name), "__version__"):  # tqdm and the like are real
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "batch"), [("bilstm", (50, None)), ("cnn", (128, 100)), ("bilstm_max", (64, 50))]
)
def test_an_original_gets_batches_of_its_size_padded_its_way(checkouts, tmp_path, name, batch):
    folder = checkouts / STUDENTS[name].repository
    list(islice(original(name, "train", folder, tmp_path), 3))  # ready, and two turns
    shapes = sys.modules["mean"].SEEN
    assert len(shapes) == 2 * TURN["train"]
    assert {shape[0] for shape in shapes} == {batch[0]}
    widths = {shape[1] for shape in shapes}
    if batch[1]:
        assert widths == {batch[1]}
    else:  # like lengths: some batches are short, some long
        assert len(widths) > 1


def test_an_original_reads_one_text_after_another(checkouts, tmp_path):
    list(islice(original("bilstm_max", "read", checkouts / "KnowledgeDistillation", tmp_path), 2))
    assert set(sys.modules["mean"].SEEN) == {(1, 50)}
    assert len(sys.modules["mean"].SEEN) == TURN["read"]


@pytest.mark.parametrize("name", ["bilstm", "cnn", "bilstm_max"])
def test_a_turn_of_an_original_trains_it_and_reading_does_not(checkouts, tmp_path, name):
    for work, changes in (("train", True), ("read", False)):
        side = original(name, work, checkouts / STUDENTS[name].repository, tmp_path)
        next(side)
        weight = sys.modules["mean"].MADE[-1].dense.weight
        before = weight.detach().clone()
        next(side)
        assert torch.equal(before, weight) is not changes


@pytest.mark.parametrize("name", STUDENTS)
def test_ours_trains_and_reads(tmp_path, monkeypatch, name):
    monkeypatch.setattr(word_students, "begin", join_group_of_one)
    monkeypatch.setattr(word_students, "EXAMPLES", 300)
    small = replace(STUDENTS[name], batch=4, vocabulary=50)
    monkeypatch.setitem(STUDENTS, name, small)
    trainer, data = word_students.build_trainer(name, tmp_path)
    assert data.teacher is not None
    assert max(map(len, data.ids)) <= (small.padded or 55)
    assert trainer.objective.student.embeddings.weight.requires_grad is not small.frozen
    monkeypatch.setattr(word_students, "build_trainer", lambda *_: (trainer, data))
    model, read = trainer.objective.student, []
    model.register_forward_hook(lambda _, inputs, __: read.append(len(inputs[0]) if inputs else 0))
    for work, changes in (("train", True), ("read", False)):
        side = ours(name, work, tmp_path / work)
        next(side)
        before = model.classifier.weight.detach().clone()
        read.clear()
        next(side)
        assert len(read) == TURN[work]
        assert torch.equal(before, model.classifier.weight) is not changes
    assert set(read) == {1}


def test_stages_have_the_weights_of_the_originals():
    both = word_students.stage_of("bilstm_max").objective
    assert (both.logits_mse, both.labels, both.logits) == (2.0, 1.0, 0.0)
    alone = word_students.stage_of("cnn")
    assert (alone.objective.logits_mse, alone.objective.labels, alone.batch_size) == (1.0, 0.0, 128)


def test_figures():
    samples = {
        "original_cnn_train_seconds": [0.4, 0.2, 0.9],
        "ours_cnn_train_seconds": [0.1, 0.1, 0.2],
        "original_cnn_read_seconds": [0.003],
        "ours_cnn_read_seconds": [0.002],
        "ours_bilstm_max_train_seconds": [0.5],
        "ours_bilstm_max_read_seconds": [0.001],
    }
    figures = summarise(samples, {"ours_cnn_peak_mb": 700.04})
    assert figures == {
        "original_cnn_texts_per_s": 320.0,
        "ours_cnn_texts_per_s": 1280.0,
        "cnn_train_speedup": 4.0,
        "original_cnn_ms": 3.0,
        "ours_cnn_ms": 2.0,
        "cnn_read_speedup": 1.5,
        "ours_bilstm_max_texts_per_s": 128.0,
        "ours_bilstm_max_ms": 1.0,
        "ours_cnn_peak_mb": 700.0,
    }


def test_the_table_has_a_row_for_each_side(capsys):
    figures = {
        f"{side}_cnn_{key}": 1.0
        for side in ("original", "ours")
        for key in ("texts_per_s", "ms", "peak_mb")
    }
    figures |= {"cnn_train_speedup": 4.25, "cnn_read_speedup": 1.5}
    word_students.show(figures, Settings(students=("cnn",)))
    lines = capsys.readouterr().out.splitlines()
    (ours_row,) = (line for line in lines if "cnn, ours" in line)
    (theirs,) = (line for line in lines if "cnn, iclassifier" in line)
    assert "4.25" in ours_row
    assert "1.50" in ours_row
    assert "4.25" not in theirs


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "--rounds: give 1 or more"),
        (["--reference", ".", "--students", "cnn"], "none of these is there: iclassifier"),
    ],
)
def test_what_can_not_be_measured_is_refused(capsys, monkeypatch, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert word_students.main(arguments) == 2
    assert said in capsys.readouterr().err
