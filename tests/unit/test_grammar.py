"""The made-up task is decided by word order: swapping the clauses flips the label."""

import re
from collections import Counter

import numpy as np
import pytest

from data_pipeline.grammar import LABELS, NEGATIONS, NEGATIVE, POSITIVE, make_sentence, write_task
from data_pipeline.settings import TaskConfig
from data_pipeline.tasks import read_examples

CLAUSE = re.compile(r"the \w+ was [\w ]+?(?= ,|$)")


@pytest.fixture(scope="module")
def sentences() -> list[tuple[str, str]]:
    rng = np.random.default_rng(0)
    return [make_sentence(rng) for _ in range(2000)]


def polarity(clause: str) -> str:
    """What one clause says."""
    negated = any(f" {negation} " in clause for negation in NEGATIONS)
    return LABELS[(clause.split()[-1] in POSITIVE) != negated]


def decide(sentence: str) -> str:
    """The label by reading: the clause that no `although` or `while` introduces, or the one after but."""
    clauses = sentence.split(" , ")
    main = [c for c in clauses if not re.match(r"although|while|even though", c)]
    return polarity(main[-1])


def swapped(sentence: str) -> str:
    first, second = CLAUSE.findall(sentence)
    return sentence.replace(first, "FIRST").replace(second, first).replace("FIRST", second)


def in_contrast(sentences: list[tuple[str, str]]) -> list[str]:
    return [sentence for sentence, _ in sentences if " , " in sentence]


def test_the_label_is_what_a_reader_decides(sentences):
    assert all(decide(sentence) == label for sentence, label in sentences)


def test_clauses_in_contrast_disagree(sentences):
    for sentence in in_contrast(sentences):
        assert {polarity(clause) for clause in CLAUSE.findall(sentence)} == set(LABELS)


def test_swapping_the_clauses_flips_the_label(sentences):
    for sentence in in_contrast(sentences):
        assert decide(swapped(sentence)) != decide(sentence)


def test_swapping_the_clauses_keeps_the_bag_of_words(sentences):
    for sentence in in_contrast(sentences):
        assert Counter(swapped(sentence).split()) == Counter(sentence.split())


def test_one_sentence_in_four_is_a_clause_alone(sentences):
    assert 1 - len(in_contrast(sentences)) / len(sentences) == pytest.approx(0.25, abs=0.03)


def test_labels_are_balanced(sentences):
    share = sum(label == LABELS[0] for _, label in sentences) / len(sentences)
    assert share == pytest.approx(0.5, abs=0.04)


def test_no_adjective_is_both_good_and_bad():
    assert not set(POSITIVE) & set(NEGATIVE)


def test_a_bag_of_words_stays_below_three_quarters(tmp_path):
    from distill.bag_of_words import bag_of_words_row

    train, dev = write_task(tmp_path, train=3000, dev=500, seed=0)
    row = bag_of_words_row(TaskConfig(train=str(train), dev=str(dev)), repeats=1)
    assert row["accuracy_mean"] < 0.75


def test_no_sentence_is_in_both_files_or_twice(tmp_path):
    train, dev = write_task(tmp_path, train=3000, dev=500, seed=0)
    task = TaskConfig(train=str(train), dev=str(dev))
    sentences = [*read_examples(task.train, task).firsts, *read_examples(task.dev, task).firsts]
    assert len(sentences) == len(set(sentences)) == 3500


def test_the_files_are_a_function_of_the_seed(tmp_path):
    files = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / folder).mkdir()
        files.append([path.read_bytes() for path in write_task(tmp_path / folder, 50, 20, seed)])
    assert files[0] == files[1]
    assert files[0] != files[2]
