"""Labelled files give the same examples whatever their format, and what is wrong is named."""

import csv
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from data_pipeline import columns
from data_pipeline.bucket import Bucket
from data_pipeline.columns import line_ends, rows_of
from data_pipeline.outage import Outage
from data_pipeline.settings import TaskConfig
from data_pipeline.tasks import (
    Encoded,
    Examples,
    bucketed_steps,
    checked_examples,
    encode,
    encode_split,
    label_set,
    read_examples,
    read_targets,
)
from data_pipeline.vocabulary import load_vocabulary

ROWS = [
    ("the plot was dull", "the cast was great", "0"),
    ('"no , never he said', "a 'quoted\" word", "1"),
    ("a , b , c", "x", "1"),
]
PAIRS = Examples(*([row[place] for row in ROWS] for place in range(3)))


def task(path: Path | str = "", **settings) -> TaskConfig:
    return TaskConfig(train=str(path), dev=str(path), **settings)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def write_tsv(path: Path, header: str = "sentence\tsecond\tlabel") -> str:
    return write(path, "\n".join([header, *("\t".join(row) for row in ROWS)]).lstrip("\n") + "\n")


# --- formats ---------------------------------------------------------------------------------


def test_tsv_takes_quotes_as_they_stand(tmp_path):
    path = write_tsv(tmp_path / "a.tsv")
    assert read_examples(path, task(text_pair="second")) == PAIRS


def test_csv_takes_commas_and_line_ends_within_quotes(tmp_path):
    path = tmp_path / "a.csv"
    rows = [*ROWS, ("two\nlines", "y", "0")]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("sentence", "second", "label"), *rows])
    examples = read_examples(str(path), task(text_pair="second"))
    assert list(zip(examples.firsts, examples.seconds, examples.labels, strict=True)) == rows


def test_jsonl_gives_the_named_fields(tmp_path):
    lines = [json.dumps({"a": a, "b": b, "y": int(label)}) for a, b, label in ROWS]
    path = write(tmp_path / "a.jsonl", "\n\n".join(lines))
    assert read_examples(path, task(text="a", text_pair="b", label="y")) == PAIRS


@pytest.mark.parametrize("name", ["A.TSV", "A.CSV", "A.JSONL"])
def test_an_ending_in_capitals_is_one(tmp_path, name):
    text = {"A.TSV": "sentence\tlabel\none\t1\n", "A.CSV": "sentence,label\none,1\n"}.get(name)
    path = write(tmp_path / name, text or '{"sentence": "one", "label": 1}')
    assert read_examples(path, task()) == Examples(["one"], [], ["1"])


def test_half_a_character_in_jsonl_is_replaced(tmp_path):
    path = write(tmp_path / "a.jsonl", r'{"sentence": "one \ud83d", "label": 1}')
    assert read_examples(path, task()).firsts == ["one \ufffd"]


def test_columns_are_taken_by_number_where_there_is_no_header(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", header="")
    settings = task(text="0", text_pair="1", label="2", header=False)
    assert read_examples(path, settings) == PAIRS


def test_columns_are_found_in_any_order_among_others(tmp_path):
    path = write(tmp_path / "a.tsv", "id\tlabel\tsentence\n7\t1\tone\n8\t0\ttwo\n")
    assert read_examples(path, task()) == Examples(["one", "two"], [], ["1", "0"])


def test_a_single_sentence_task_has_no_seconds(tmp_path):
    assert read_examples(write_tsv(tmp_path / "a.tsv"), task()).seconds == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_mark_and_line_ends_change_nothing(tmp_path, encoding, end):
    path = tmp_path / "a.tsv"
    path.write_bytes(end.join(["sentence\tlabel", "one\t1", "", "two\t0"]).encode(encoding))
    assert read_examples(str(path), task()) == Examples(["one", "two"], [], ["1", "0"])


def test_a_byte_order_mark_changes_nothing_in_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"sentence": "one", "label": 1}\n', encoding="utf-8-sig")
    assert read_examples(str(path), task()).firsts == ["one"]


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_a_line_of_blanks_is_no_row_of_several_columns(tmp_path, name):
    mark = "\t" if name == "a.tsv" else ","
    text = f"sentence{mark}label\none{mark}1\n   \n\n {mark}0\n"
    assert read_examples(write(tmp_path / name, text), task()) == Examples(["one", " "], [], ["1", "0"])
    alone = write(tmp_path / f"alone-{name}", "sentence\none\n  \n\n")
    assert read_examples(alone, task(), labelled=False).firsts == ["one", "  ", ""]


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b", "\x00"])
def test_only_line_feeds_end_a_row(tmp_path, mark):
    path = write(tmp_path / "a.tsv", f"sentence\tlabel\none{mark}more\t1\n")
    assert read_examples(path, task()).firsts == [f"one{mark}more"]


# --- what is wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "text\tlabel\none\t1\n", 'a.tsv has no column "sentence"; it has text, label'),
        (
            "a.tsv",
            " sentence\t\none\t1\n",
            "it has ' sentence', '': name one of these, or, if that is no header",
        ),
        (
            "a.tsv",
            "sentence\tlabel\none\t1\ntwo\n",
            "a.tsv line 3 has 1 columns and the header 2; is it cut off?",
        ),
        (
            "a.csv",
            'sentence,label\n"zero\nand",0\n"one\n',
            "a.csv is no table: unexpected end of data in the row that begins at line 4; is a quotation",
        ),
        (
            "a.csv",
            'sentence,label\none,1\n"two"s,1\n',
            "expected after '\"' in the row that begins at line 3; is",
        ),
        ("a.jsonl", '{"sentence": "one"}', "a.jsonl line 1 has no field 'label'; it has sentence"),
        ("a.jsonl", '{"sentence": null, "label": 1}', "a.jsonl line 1 has nothing in the field 'sentence'"),
        ("a.jsonl", '{"sentence": NaN, "label": 1}', "a.jsonl line 1 has nothing in the field 'sentence'"),
        ("a.jsonl", '{"sentence": "one", "label": NaN}', "a.jsonl line 1 has nothing in the field 'label'"),
        ("a.jsonl", '{"sentence": "one", "label": ["a", null]}', "has nothing in the field 'label'"),
        ("a.jsonl", '\n{"sentence": "one"', "a.jsonl line 2 is no JSON object"),
        ("a.jsonl", "[1]", "a.jsonl line 1 is no JSON object"),
        (
            "a.jsonl",
            '{"sentence": "one", "label": ["a"]}',
            "line 1 holds a list; of several labels --task.kind",
        ),
        (
            "a.jsonl",
            '{"sentence": ["one", "two"], "label": 1}',
            'line 1 holds a list in "sentence" where a text is needed; give another column',
        ),
        (
            "a.jsonl",
            '{"sentence": {"en": "one"}, "label": 1}',
            'line 1 holds an object in "sentence" where a text is needed; give another column',
        ),
        (
            "a.jsonl",
            '{"sentence": "one", "label": {"id": 1}}',
            'line 1 holds an object in "label" where a text is needed; give another column',
        ),
        (
            "a.tsv",
            "sentence\tlabel\na\tb\t1\n",
            "line 2 has 3 columns and the header 2; does a text hold a tab?",
        ),
        (
            "a.csv",
            "sentence,label\na,b,1\n",
            "line 2 has 3 columns and the header 2; does a text hold a comma?",
        ),
        ("a.tsv", "sentence\tlabel\tlabel\na\t1\t1\n", 'has several columns "label"; give each a name'),
        ("a.tsv", "", "a.tsv holds no examples"),
        ("a.tsv", "sentence\tlabel\n", "a.tsv holds no examples"),
        ("a.jsonl", "\n", "a.jsonl holds no examples"),
        ("a.xlsx", "x", "a.xlsx is of no known kind; give .tsv, .csv, .jsonl or .parquet"),
    ],
)
def test_a_bad_file_is_named_with_its_line_or_column(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=r"^task: ") as error:
        read_examples(write(tmp_path / name, text), task())
    assert message in str(error.value)


def test_blanks_around_a_label_are_none_of_it(tmp_path):
    path = write(tmp_path / "a.tsv", "sentence\tlabel\t\none\t1 \t\t\n two \t0\n")
    assert read_examples(path, task()) == Examples(["one", " two "], [], ["1", "0"])


def test_an_example_without_a_label_is_named(tmp_path):
    path = write(tmp_path / "a.tsv", "sentence\tlabel\none\t1\ntwo\t\n")
    with pytest.raises(ValueError, match=r"a\.tsv example 2 has no label; give it one, or leave it out"):
        label_set(task(path))


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_bytes_that_are_no_text_are_named_with_their_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"sentence\tlabel\n\xff\xfe\x00\t1\n")
    with pytest.raises(ValueError, match=rf"{name} line 2 is not UTF-8 text; "):
        read_examples(str(tmp_path / name), task())


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path, name):
    """Though a part of the file is decoded at once, which holds lines before and after."""
    table = f"sentence{',' if name == 'a.csv' else chr(9)}label\n".encode()
    line = b'{"sentence": "one", "label": 1}\n' if name == "a.jsonl" else table
    for before in (0, 1, 5000):
        (tmp_path / name).write_bytes(line * before + line.replace(b"e", b"\xe9") + line * 5000)
        with pytest.raises(ValueError, match=rf"line {before + 1} is not UTF-8 text; convert the file"):
            read_examples(str(tmp_path / name), task())


def test_a_line_without_the_column_of_a_file_without_a_header_is_named(tmp_path):
    path = write(tmp_path / "a.tsv", "one\t1\n")
    with pytest.raises(
        ValueError, match="has 2 columns and column 3 is needed, counted from 0; is it cut off"
    ):
        read_examples(path, task(header=False, text="0", label="3"))


def test_a_file_of_no_name_is_refused():
    with pytest.raises(ValueError, match="task: the name of a file is empty; give an existing file"):
        read_examples("", task())


def test_a_list_of_zeros_and_ones_beside_more_labels_is_told_by_its_length(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"sentence": "one", "label": [1, 0]}\n')
    several = task(path, kind="multi_label", labels=["red", "square", "round"])
    with pytest.raises(
        ValueError, match=r"line 1 holds a list of 2 zeros and ones and --task.labels has 3 "
    ):
        read_examples(path, several)
    numbered = task(path, kind="multi_label", labels=["0", "1", "2"])
    assert read_examples(path, numbered).labels == ["1,0"]


def test_a_quotation_mark_that_is_never_closed_is_named(tmp_path):
    path = write(tmp_path / "a.csv", 'sentence,label\n"one,1\n' + "two,0\n" * 50_000)
    with pytest.raises(ValueError, match=r"a\.csv is no table: .*; is a quotation mark left open\?"):
        read_examples(path, task())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.tsv does not exist; give an existing file"):
        read_examples(str(tmp_path / "none.tsv"), task())


def test_a_folder_in_place_of_a_file_is_named_as_such(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; give a file"):
        read_examples(str(tmp_path), task())


def test_a_column_name_without_a_header_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'no header, so "sentence" must be a column number'):
        read_examples(write_tsv(tmp_path / "a.tsv"), task(header=False))


# --- labels ----------------------------------------------------------------------------------


def test_labels_are_sorted_where_nobody_says_their_order(tmp_path):
    path = write(
        tmp_path / "a.tsv", "sentence\tlabel\n" + "".join(f"x\t{label}\n" for label in "hgfedcbaabc")
    )
    assert label_set(task(path)) == list("abcdefgh")


def test_the_models_labels_come_before_the_files(tmp_path):
    assert label_set(task("unread.tsv"), ["yes", "no"]) == ["yes", "no"]


def test_the_tasks_labels_stand_where_the_model_has_none():
    assert label_set(task("unread.tsv", labels=["b", "a"])) == ["b", "a"]


def test_another_order_than_the_models_is_refused():
    message = r"task\.labels: .*'b', 'a'.*not the order.*'a', 'b'.*use the model's"
    with pytest.raises(ValueError, match=message):
        label_set(task("unread.tsv", labels=["b", "a"]), ["a", "b"])


def test_a_task_may_number_the_models_named_classes():
    numbers = task("unread.tsv", labels=["0", "1"])
    assert label_set(numbers, ["negative", "positive"]) == ["0", "1"]
    for others in (["1", "0"], ["a", "b", "c"], ["0", "b"]):
        with pytest.raises(ValueError, match="use the model's"):
            label_set(numbers, others)


def test_regression_has_no_labels():
    assert label_set(task("unread.tsv", kind="regression")) == []


def test_a_label_outside_the_set_is_named_with_its_example(tmp_path):
    path = write(tmp_path / "a.tsv", "sentence\tlabel\nx\t0\ny\t2\n")
    with pytest.raises(ValueError, match=r'example 2 has the label "2", which is none of 0, 1; correct'):
        checked_examples(path, task(), ["0", "1"])


@pytest.mark.parametrize("label", ["high", "", "nan", "inf"])
def test_a_regression_label_that_is_no_number_is_named(tmp_path, label):
    path = write(tmp_path / "a.tsv", f"sentence\tlabel\nx\t0.5\ny\t{label}\n")
    with pytest.raises(ValueError, match=rf'example 2 has "{label}" where a number is needed'):
        checked_examples(path, task(kind="regression"), [])


@pytest.mark.parametrize(
    ("settings", "metric"),
    [
        ({}, "accuracy"),
        ({"kind": "regression"}, "pearson_spearman"),
        ({"metric": "matthews"}, "matthews"),
    ],
)
def test_what_the_best_checkpoint_is_chosen_by(settings, metric):
    assert task(**settings).selection == metric


# --- tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [None, "second"])
@pytest.mark.parametrize("max_length", [6, 64])
def test_encoding_is_that_of_the_models_own_tokenizer(tmp_path, tiny_tokenizer, pair, max_length):
    from transformers import AutoTokenizer

    settings = task(write_tsv(tmp_path / "a.tsv"), text_pair=pair, max_length=max_length)
    encoded = encode_split(settings.train, settings, load_vocabulary(tiny_tokenizer), ["0", "1"])
    texts = [PAIRS.firsts, PAIRS.seconds] if pair else [PAIRS.firsts]
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    expected = tokenizer(*texts, truncation=True, max_length=max_length, return_token_type_ids=True)
    assert [ids.tolist() for ids in encoded.ids] == expected["input_ids"]
    assert [segments.tolist() for segments in encoded.segments] == expected["token_type_ids"]


def test_a_file_is_read_once_to_be_encoded(tmp_path, tiny_tokenizer, monkeypatch):
    """Behind a URL each time is a download."""
    settings, opened = task(write_tsv(tmp_path / "a.tsv")), []
    monkeypatch.setattr(columns, "line_ends", lambda form: opened.append(form) or line_ends(form))
    encode_split(settings.train, settings, load_vocabulary(tiny_tokenizer), ["0", "1"])
    assert len(opened) == 1


def test_a_label_becomes_its_place_in_the_set(tmp_path, tiny_tokenizer):
    settings = task(write_tsv(tmp_path / "a.tsv"))
    encoded = encode_split(settings.train, settings, load_vocabulary(tiny_tokenizer), ["1", "0"])
    assert encoded.labels.tolist() == [1, 0, 0]
    assert encoded.labels.dtype == np.int64


def test_a_regression_label_becomes_its_number(tmp_path, tiny_tokenizer):
    path = write(tmp_path / "a.tsv", "sentence\tlabel\nx\t0.5\ny\t-3\n")
    encoded = encode_split(path, task(path, kind="regression"), load_vocabulary(tiny_tokenizer), [])
    assert encoded.labels.tolist() == [0.5, -3.0]


def test_lengths_are_those_of_the_ids(tmp_path, tiny_tokenizer):
    settings = task(write_tsv(tmp_path / "a.tsv"))
    encoded = encode_split(settings.train, settings, load_vocabulary(tiny_tokenizer), ["0", "1"])
    assert encoded.lengths.tolist() == [len(ids) for ids in encoded.ids]
    assert len(encoded) == 3


def test_no_example_at_all_is_padded_to_no_row(tmp_path, tiny_tokenizer):
    settings = task(write_tsv(tmp_path / "a.tsv"))
    encoded = encode_split(settings.train, settings, load_vocabulary(tiny_tokenizer), ["0", "1"])
    for name, part in encoded.padded(np.array([], dtype=np.int64)).items():
        assert (name, part.shape) == (name, (0, 1))


def test_encoding_leaves_the_tokenizer_as_it_was(tmp_path, tiny_tokenizer):
    settings = replace(task(write_tsv(tmp_path / "a.tsv")), max_length=4)
    vocabulary = load_vocabulary(tiny_tokenizer)
    encode_split(settings.train, settings, vocabulary, ["0", "1"])
    assert len(vocabulary.tokenizer.encode("the plot was dull").ids) == 6


def test_many_texts_are_tokenised_part_by_part_and_in_order(tiny_tokenizer):
    """What the library keeps of each text is large: of a whole file it may take all memory."""
    vocabulary = load_vocabulary(tiny_tokenizer)
    texts = [" ".join(["the"] * (n % 7)) for n in range(10_000)]
    counts = []

    class Counted:
        def __getattr__(self, name):
            return getattr(vocabulary.tokenizer, name)

        def encode_batch_fast(self, texts):
            counts.append(len(texts))
            return vocabulary.tokenizer.encode_batch_fast(texts)

    counted = replace(vocabulary, tokenizer=Counted())
    encoded = encode(Examples(texts, [], []), task(), counted)
    assert sum(counts) == len(texts)
    assert max(counts) < 5_000
    assert encoded.lengths.tolist() == [2 + n % 7 for n in range(10_000)]


# --- buckets ---------------------------------------------------------------------------------

all_lengths = st.lists(st.integers(2, 64), min_size=1, max_size=400).map(np.array)
batch_sizes = st.integers(1, 9)


@given(all_lengths, batch_sizes, st.integers(0, 9), st.integers(0, 3))
def test_an_epoch_takes_whole_batches_and_no_example_twice(lengths, batch_size, seed, epoch):
    steps = bucketed_steps(lengths, batch_size, seed, epoch)
    assert steps.shape == (len(lengths) // batch_size, batch_size)
    taken = set(steps.ravel().tolist())
    assert len(taken) == steps.size
    assert taken <= set(range(len(lengths)))


@given(all_lengths, batch_sizes, st.integers(0, 9))
def test_steps_of_a_group_do_not_overlap_in_length(lengths, batch_size, seed):
    """Sorted by length, each step of up to 50 begins where another ends."""
    lengths = lengths[: 50 * batch_size]
    steps = sorted(sorted(lengths[step].tolist()) for step in bucketed_steps(lengths, batch_size, seed, 0))
    assert all(before[-1] <= after[0] for before, after in pairwise(steps))


@given(all_lengths, batch_sizes, st.integers(0, 9), st.integers(0, 3))
def test_steps_are_a_function_of_seed_and_epoch(lengths, batch_size, seed, epoch):
    first, again = (bucketed_steps(lengths, batch_size, seed, epoch) for _ in range(2))
    assert (first == again).all()


def test_steps_differ_from_epoch_to_epoch():
    lengths = np.full(64, 5)
    assert (bucketed_steps(lengths, 4, 0, 0) != bucketed_steps(lengths, 4, 0, 1)).any()


def test_long_and_short_steps_are_mixed():
    lengths = np.arange(400)
    means = lengths[bucketed_steps(lengths, 8, 0, 0)].mean(1)
    assert (means != np.sort(means)).any()


def test_examples_left_over_come_in_another_epoch():
    lengths = np.arange(7) + 2
    taken = {int(i) for epoch in range(20) for i in bucketed_steps(lengths, 4, 0, epoch).ravel()}
    assert taken == set(range(7))


def test_a_label_that_holds_the_separator_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "a", "topics": ["Food, drink", "cars"]}))
    task = TaskConfig(str(tmp_path / "train.jsonl"), "dev", text="text", label="topics", kind="multi_label")
    with pytest.raises(ValueError, match="'Food, drink' holds ','"):
        read_examples(task.train, task)


@pytest.mark.parametrize(
    "kind", [datasets.Value("float32"), datasets.Value("int64"), datasets.Value("bool")]
)
def test_a_list_of_zeros_and_ones_means_the_labels_in_their_order(tmp_path, kind):
    rows = [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    settings = {"kind": "multi_label", "labels": ["joy", "anger", "fear", "love"]}
    saved = saved_data_set(tmp_path / "saved", rows, datasets.List(kind))
    assert read_examples(saved, task(**settings)).labels == ["joy,love", "", "anger"]
    lines = [json.dumps({"sentence": "a", "label": row}) for row in rows]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    assert read_examples(path, task(**settings)).labels == ["joy,love", "", "anger"]
    for labels in (None, ["joy", "anger", "fear"]):
        with pytest.raises(
            ValueError, match=r"line 1 holds a list of zeros and ones, .*; give --task\.labels"
        ):
            read_examples(path, task(kind="multi_label", labels=labels))


@pytest.mark.parametrize(
    ("value", "labels"),
    [([3, 1], None), ([1], None), ([0, 1], ["0", "1", "2"]), (["1", "0"], None), (["a", "a"], None)],
)
def test_a_list_of_names_may_hold_numbers(tmp_path, value, labels):
    path = write(tmp_path / "a.jsonl", json.dumps({"sentence": "a", "label": value}))
    read = read_examples(path, task(kind="multi_label", labels=labels))
    assert read.labels == [",".join(map(str, value))]


@pytest.mark.parametrize("value", [[0, 1], [1.0, 0.0], [0, 0], [2, 2], [False, True]])
def test_a_list_that_can_be_no_names_is_refused(tmp_path, value):
    path = write(tmp_path / "a.jsonl", json.dumps({"sentence": "a", "label": value}))
    with pytest.raises(
        ValueError, match="line 1 holds a list of zeros and ones, or one that repeats a number"
    ):
        read_examples(path, task(kind="multi_label"))


def test_a_separator_joins_labels_and_no_texts(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"sentence": ["one", "two"], "label": ["a", "b"]}')
    with pytest.raises(ValueError, match='line 1 holds a list in "sentence" where a text is needed'):
        read_examples(path, task(kind="multi_label"))
    with pytest.raises(ValueError, match='line 1 holds a list in "sentence" where a text is needed'):
        read_examples(path, task(kind="multi_label"), labelled=False)
    with open(path) as file, pytest.raises(ValueError, match='input line 1 holds a list in "sentence"'):
        list(rows_of(file, "jsonl", "input", ["sentence"], header=True))


def test_an_empty_separator_of_labels_is_refused(tmp_path):
    path = write(tmp_path / "a.tsv", "sentence\tlabel\none\ta b\n")
    with pytest.raises(ValueError, match="the separator of labels is empty; give one that no label holds"):
        label_set(task(path, kind="multi_label", separator=""))


def saved_data_set(folder: Path, labels: list, kind) -> str:
    """A folder saved by `datasets` with the columns sentence and label."""
    features = datasets.Features({"sentence": datasets.Value("string"), "label": kind})
    texts = [f"text {number}" for number in range(len(labels))]
    rows = datasets.Dataset.from_dict({"sentence": texts, "label": labels}, features=features)
    rows.save_to_disk(str(folder))
    return str(folder)


def test_classes_in_a_list_are_called_by_their_names(tmp_path):
    classes = datasets.List(datasets.ClassLabel(names=["joy", "anger", "fear"]))
    path = saved_data_set(tmp_path / "saved", [[0, 2], [1], []], classes)
    assert read_examples(path, task(kind="multi_label")).labels == ["joy,fear", "anger", ""]


def test_a_data_set_keeps_the_order_of_its_classes(tmp_path):
    """Those that never occur too: a model's outputs are its numbers."""
    classes = datasets.ClassLabel(names=["not_equivalent", "equivalent", "-"])
    path = saved_data_set(tmp_path / "saved", [1, 0, 1], classes)
    assert label_set(task(path)) == ["not_equivalent", "equivalent", "-"]
    path = saved_data_set(tmp_path / "several", [[1], [0, 1]], datasets.List(classes))
    assert label_set(task(path, kind="multi_label")) == ["not_equivalent", "equivalent", "-"]
    assert label_set(task(path, kind="multi_label", labels=["equivalent"])) == ["equivalent"]


def test_an_example_without_a_class_is_named(tmp_path):
    path = saved_data_set(tmp_path / "saved", [1, None], datasets.ClassLabel(names=["a", "b"]))
    with pytest.raises(ValueError, match="row 2 has nothing in the column 'label'"):
        read_examples(path, task())
    path = saved_data_set(tmp_path / "numbers", [0.5, float("nan")], datasets.Value("float64"))
    with pytest.raises(ValueError, match="row 2 has nothing in the column 'label'"):
        read_examples(path, task(kind="regression"))


def test_a_file_behind_a_url_gives_the_same_examples(bucket_server, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket_server.endpoint)
    bucket = Bucket("s3://bucket/sst2?region=us-east-1")
    task = TaskConfig("train.tsv", "dev.tsv")
    here = tmp_path / "dev.tsv"
    here.write_bytes('sentence\tlabel\r\nein "Wort\t1\r\nünd\t0\r\n'.encode())
    bucket.put("dev.tsv", here)
    assert read_examples("s3://bucket/sst2/dev.tsv", task) == read_examples(str(here), task)
    with pytest.raises(
        ValueError, match=r"s3://bucket/sst2/train.tsv does not exist; give an existing URL"
    ):
        read_examples("s3://bucket/sst2/train.tsv", task)
    with pytest.raises(
        ValueError, match=r"s3://bucket/sst2/dev.parquet is of no known kind; give .tsv, .csv"
    ):
        read_examples("s3://bucket/sst2/dev.parquet", task)
    bucket.put("dev.tsv", b"sentence\tlabel\n\xff\t1\n")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_examples("s3://bucket/sst2/dev.tsv", task)


@pytest.mark.parametrize("kind", ["classification", "multi_label"])
def test_texts_of_a_parquet_may_be_typed_as_bytes(tmp_path, kind):
    """As Spark and Hive write them."""
    several = kind == "multi_label"
    columns = {
        "sentence": ["one", "zwei é", "三"],
        "label": [["a", "b"], ["b"], []] if several else list("aba"),
    }
    found = []
    for name, typed in (("text", pyarrow.string()), ("bytes", pyarrow.binary())):
        schema = pyarrow.schema({"sentence": typed, "label": pyarrow.list_(typed) if several else typed})
        table = pyarrow.Table.from_pydict(columns).cast(schema)
        parquet.write_table(table, tmp_path / f"{name}.parquet")
        found.append(read_examples(str(tmp_path / f"{name}.parquet"), task(kind=kind)))
    assert found[0] == found[1]
    assert found[0].firsts == columns["sentence"]


def test_reading_a_parquet_writes_nothing(tmp_path, monkeypatch, capfd):
    """Neither a copy into the user's cache nor progress, which every process would show."""
    path, cache = tmp_path / "a.parquet", tmp_path / "cache"
    classes = datasets.Features(
        sentence=datasets.Value("string"), label=datasets.ClassLabel(names=["b", "a"])
    )
    datasets.Dataset.from_dict({"sentence": ["one", "two"], "label": [1, 0]}, classes).to_parquet(path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    capfd.readouterr()
    settings = task(path)
    assert read_examples(str(path), settings) == Examples(["one", "two"], [], ["a", "b"])
    assert label_set(settings) == ["b", "a"]
    assert not cache.exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["dictionary", "large_string"])
def test_strings_of_a_parquet_may_be_of_any_kind(tmp_path, kind):
    plain = pyarrow.array(["a", "b", "a"])
    typed = plain.dictionary_encode() if kind == "dictionary" else plain.cast(kind)
    parquet.write_table(pyarrow.table({"sentence": typed, "label": typed}), tmp_path / "a.parquet")
    found = read_examples(str(tmp_path / "a.parquet"), task())
    assert found == Examples(plain.to_pylist(), [], plain.to_pylist())


@pytest.mark.parametrize(
    ("error", "told", "passes"),
    [
        (RuntimeError("503"), "task: memory://a.tsv can't be read: 503; try again later", True),
        (PermissionError("no"), "task: memory://a.tsv may not be read; let this user read it", False),
        (ValueError("no ranges"), "task: memory://a.tsv can't be read: no ranges", False),
        (FileNotFoundError("no"), "task: memory://a.tsv does not exist; give an existing URL", False),
    ],
)
def test_an_outage_is_told_from_a_mistake(monkeypatch, error, told, passes):
    """A search tries a trial again where waiting may mend what went wrong."""

    def fail(*_: object) -> bytes:
        raise error

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    with pytest.raises(ValueError) as found:  # noqa: PT011
        read_examples("memory://a.tsv", task())
    assert told in str(found.value)
    assert isinstance(found.value, Outage) == passes


def test_data_that_is_cut_otherwise_is_other_data():
    def identity(*rows: list[int]) -> dict[str, str]:
        ids = [np.array(row, dtype=np.int32) for row in rows]
        return Encoded(ids, ids, np.zeros(len(ids), dtype=np.int64), 0).identity

    assert identity([1, 2], [3]) == identity([1, 2], [3]) != identity([1], [2, 3])


def test_other_logits_of_the_teachers_are_other_data():
    ids, labels = [np.array([1, 2], dtype=np.int32)], np.zeros(1, dtype=np.int64)
    known = [Encoded(ids, ids, labels, 0, teacher).identity for teacher in (None, labels, labels + 1)]
    assert len({*map(str, known)}) == 3


def test_rows_are_padded_behind_their_ends():
    ids = [np.array(row, dtype=np.int32) for row in ([5, 6, 7], [8])]
    data = Encoded(ids, [row > 6 for row in ids], np.zeros(2, dtype=np.int64), 9)
    for width, more in ((None, []), (5, [9, 9])):
        found = {name: part.tolist() for name, part in data.padded(np.array([1, 0]), width).items()}
        none = [0] * len(more)
        assert found == {
            "ids": [[8, 9, 9, *more], [5, 6, 7, *more]],
            "mask": [[1, 0, 0, *none], [1, 1, 1, *none]],
            "segments": [[1, 0, 0, *none], [0, 0, 1, *none]],
        }


def test_without_a_header_later_rows_may_be_longer(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("good\t1\nbad\t0\tand more\n", encoding="utf-8")
    assert read_examples(str(path), task(text="0", label="1", header=False)).labels == ["1", "0"]


def test_every_label_of_an_example_is_in_its_targets(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("sentence\tlabel\na\tjoy; fear\nb\t\nc\tfear;\n", encoding="utf-8")
    found = read_targets(str(path), task(kind="multi_label", separator=";"), ["fear", "joy"])
    assert found.tolist() == [[1, 1], [0, 0], [1, 0]]
