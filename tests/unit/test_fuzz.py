"""Damaged and malicious files: a result or a clear refusal. `python -m benchmarks.fuzz` has more."""

import json
from pathlib import Path

import pytest

from benchmarks import fuzz
from benchmarks.fuzz_changes import BOMB
from data_pipeline.settings import TaskConfig
from data_pipeline.tasks import read_examples
from data_pipeline.untrusted import LONGEST_MESSAGE, LONGEST_ROW, one_line
from distill import predict
from distill.settings import PredictConfig
from launcher.recipe import read_recipe


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    fuzz.make_all(folder, fuzz.READERS)
    return folder


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_a_reader_answers_or_refuses_clearly(made, reader):
    for number in range(11):
        _, what, told = fuzz.outcome(made, {reader: fuzz.READERS[reader]}, 0, number)
        assert what != "failed", f"case {number}: {told}"


def test_the_harness_sees_a_traceback_and_a_message_without_a_name(tmp_path):
    for name, error in (("keys", KeyError("a")), ("vague", ValueError("wrong")), ("hang", fuzz.TooLong())):

        def read(folder: Path, error: BaseException = error) -> None:
            if not folder.name.startswith("case"):
                return
            raise error

        reader = fuzz.Reader(lambda folder: (folder / "x").write_text("1"), read)
        fuzz.make_all(tmp_path, {name: reader})
        assert fuzz.outcome(tmp_path, {name: reader}, 0, 0)[1] == "failed"


def examples(tmp_path: Path, form: str, content: str) -> list[str]:
    path = tmp_path / f"train.{form}"
    path.write_bytes(content.encode())
    return read_examples(str(path), TaskConfig(str(path), str(path))).firsts


def test_a_long_text_is_read_and_an_endless_line_refused(tmp_path):
    text = "a " * 100_000  # more than the csv module's own limit
    assert examples(tmp_path, "tsv", f"sentence\tlabel\n{text}\t1\n") == [text]
    assert examples(tmp_path, "csv", f'sentence,label\n"{text}",1\n') == [text]
    for form in ("tsv", "csv", "jsonl"):
        with pytest.raises(ValueError, match=rf"train\.{form} line 1 has more than 8 million characters"):
            examples(tmp_path, form, "a" * (LONGEST_ROW + 1))


def test_a_carriage_return_within_a_line_is_text(tmp_path):
    assert examples(tmp_path, "tsv", "sentence\tlabel\r\none\rtext\t1\r\nb\t0\n") == ["one\rtext", "b"]
    path = tmp_path / "texts.txt"
    path.write_bytes(b"one\rtext\ntwo\r\n")
    config = PredictConfig("model", input=str(path))
    with predict.opened(config.input, "lines") as source:
        assert list(predict.texts(config, source)) == [["one\rtext"], ["two"]]


def test_aliases_that_stand_for_too_much_are_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(BOMB)
    with pytest.raises(ValueError, match=r"recipe\.yaml is no YAML file of settings \(it is too large"):
        read_recipe(str(recipe))
    recipe.write_text("a: &a [*a]\n")
    with pytest.raises(ValueError, match="it holds itself"):
        read_recipe(str(recipe))
    recipe.write_text("a: &x {lr: 1}\nb: *x\n")
    assert read_recipe(str(recipe)) == {"a": {"lr": 1}, "b": {"lr": 1}}


def test_a_message_is_one_bounded_line_that_no_terminal_acts_on():
    assert one_line("a\n b\x1b[2J") == "a b?[2J"
    assert len(one_line("x" * 10**6)) == LONGEST_MESSAGE + 4
    assert one_line(json.dumps("好")) == json.dumps("好")
