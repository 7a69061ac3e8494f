"""The graph is the paper's, counted naively; labels reach texts through it."""

import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import combinations
from math import log
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.settings import TaskConfig
from distill import text_gcn
from distill.settings import TextGcnConfig
from distill.text_gcn import graph, mutual_information, run

RUNS = [np.array(run) for run in ([0, 1, 2, 3, 1], [2, 4], [0, 1], [3])]


def test_mutual_information_counts_windows():
    windows = [{0, 1, 2}, {1, 2, 3}, {2, 3, 1}, {2, 4}, {0, 1}, {3}]
    one = Counter(word for window in windows for word in window)
    two = Counter(pair for window in windows for pair in combinations(sorted(window), 2))
    expected = np.zeros((5, 5))
    for (a, b), count in two.items():
        expected[a, b] = expected[b, a] = max(0.0, log(count * len(windows) / (one[a] * one[b])))
    np.testing.assert_allclose(mutual_information(RUNS, 5, 3).toarray(), expected)


def test_windows_are_counted_in_pieces(monkeypatch):
    expected = mutual_information(RUNS, 5, 3).toarray()
    monkeypatch.setattr(text_gcn, "WINDOWS_AT_ONCE", 4)
    np.testing.assert_array_equal(mutual_information(RUNS, 5, 3).toarray(), expected)
    long = np.random.default_rng(0).integers(0, 50, 100_000)
    monkeypatch.setattr(text_gcn, "WINDOWS_AT_ONCE", 1000)
    tracemalloc.start()
    mutual_information([long], 50, 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6  # 57 MB of all at once


def test_the_graph_is_symmetric_and_normalised():
    matrix = graph(RUNS, 5, 3).toarray()
    np.testing.assert_allclose(matrix, matrix.T)
    assert (matrix[:4, :4] == np.diag(np.diag(matrix[:4, :4]))).all()  # texts meet through words alone
    assert np.linalg.eigvalsh(matrix).max() == pytest.approx(1)


def test_a_text_without_words_stands_alone():
    matrix = graph([*RUNS, np.array([], dtype=np.int64)], 5, 3).toarray()
    assert matrix[4, 4] == 1
    assert np.count_nonzero(matrix[4]) == 1


@pytest.fixture
def task(tmp_path) -> TaskConfig:
    words = {"food": ["soup", "bread", "wine"], "cars": ["wheel", "road", "engine"]}
    rng = np.random.default_rng(0)
    for name, count in (("train", 40), ("dev", 20)):
        labels = rng.choice(["food", "cars"], count)
        lines = [f"{' '.join(rng.choice(words[label], 2))} and more\t{label}" for label in labels]
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    return TaskConfig(str(tmp_path / "train.tsv"), str(tmp_path / "dev.tsv"))


def test_labels_reach_the_dev_texts(tmp_path, task):
    summary = run(TextGcnConfig(task, hidden_size=16, epochs=40), tmp_path)
    assert summary["best"]["accuracy"] == 1
    assert summary["graph"]["texts"] == 60
    assert np.trace(summary["confusion"]) == 20


def test_a_run_begins_anew_where_a_killed_one_left_lines(tmp_path, task):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "textgcn", "step": 1, "time": 0.1}\n{"stage": "tex')
    run(TextGcnConfig(task, hidden_size=16, epochs=2), tmp_path)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 1, 2, 2]


def test_texts_without_a_word_that_is_a_node_are_refused(tmp_path, task):
    with pytest.raises(ValueError, match=r"dev\.tsv hold no word 1000 times \(least\)"):
        run(TextGcnConfig(task, least=1000), tmp_path)


def losses(config: TextGcnConfig, folder: Path) -> list[float]:
    run(config, folder)
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    found = [row["loss"] for row in rows if row["split"] == "train"]
    (folder / "metrics.jsonl").unlink()
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 8},
        {"window": 2},
        {"least": 25},
        {"most": 3},
        {"lr": 0.1},
        {"dropout": 0},
        {"seed": 1},
    ],
    ids=str,
)
def test_every_setting_counts(tmp_path, task, change):
    config = TextGcnConfig(task, hidden_size=16, epochs=2)
    alike, changed = losses(config, tmp_path), losses(replace(config, **change), tmp_path)
    assert losses(config, tmp_path) == alike
    assert changed != pytest.approx(alike)
