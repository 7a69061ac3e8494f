"""What `evaluate` writes for GLUE's server."""

import pytest
import torch

from data_pipeline.settings import TaskConfig
from distill.evaluate import _write_submission

LOGITS = torch.tensor([[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("name", "labels", "answers"),
    [
        ("CoLA", ["unacceptable", "acceptable"], ["1", "0"]),
        ("SST-2", ["1", "0"], ["0", "1"]),
        ("QNLI", ["entailment", "not_entailment"], ["not_entailment", "entailment"]),
    ],
)
def test_glues_server_gets_the_answers_that_it_takes(tmp_path, name, labels, answers):
    _write_submission(tmp_path / "row" / f"{name}.tsv", LOGITS, labels, TaskConfig("train.tsv", "dev.tsv"))
    lines = (tmp_path / "row" / f"{name}.tsv").read_text().splitlines()
    assert lines == ["index\tprediction", *(f"{number}\t{answer}" for number, answer in enumerate(answers))]


def test_glues_server_gets_numbers_of_a_regression(tmp_path):
    task = TaskConfig("train.tsv", "dev.tsv", kind="regression")
    _write_submission(tmp_path / "row" / "STS-B.tsv", torch.tensor([[2.5]]), [], task)
    assert (tmp_path / "row" / "STS-B.tsv").read_text() == "index\tprediction\n0\t2.500\n"


@pytest.mark.parametrize("label", ["in\ttwo", "in\ntwo", "in\r\n\u2028two "])
def test_a_label_stays_one_field_of_an_answers_line(tmp_path, label):
    """A jsonl task's labels may hold anything."""
    task = TaskConfig("train.jsonl", "dev.jsonl")
    _write_submission(tmp_path / "row" / "answers.tsv", LOGITS, ["one", label], task)
    assert (tmp_path / "row" / "answers.tsv").read_text() == "index\tprediction\n0\tin two\n1\tone\n"
