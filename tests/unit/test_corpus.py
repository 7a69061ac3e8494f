"""A corpus gives the same documents whatever format it is stored in."""

import json
from pathlib import Path

import pytest

from data_pipeline.corpus import check_corpus, read_documents, split_sentences
from data_pipeline.settings import CorpusConfig

DOCUMENTS = [["A first sentence.", "A second one!"], ["Another document?", "It ends."]]


def write(path: Path, text: str) -> CorpusConfig:
    path.write_text(text, encoding="utf-8")
    return CorpusConfig(files=[str(path)])


def test_blank_lines_cut_a_txt_into_documents(tmp_path):
    text = "\n\n".join("\n".join(document) for document in DOCUMENTS)
    assert list(read_documents(write(tmp_path / "a.txt", text))) == DOCUMENTS


def test_blank_lines_at_the_ends_and_in_a_row_make_no_document(tmp_path):
    config = write(tmp_path / "a.txt", "\n \n one\n\t\n\n\n two \n\n\n")
    assert list(read_documents(config)) == [["one"], ["two"]]


def test_windows_line_ends_give_the_same_documents(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\n\r\nthree\r\n")
    assert list(read_documents(CorpusConfig(files=[str(tmp_path / "a.txt")]))) == [
        ["one", "two"],
        ["three"],
    ]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("one", encoding="utf-8-sig")
    assert list(read_documents(CorpusConfig(files=[str(tmp_path / "a.txt")]))) == [["one"]]


def test_each_line_is_a_document_where_asked(tmp_path):
    config = write(tmp_path / "a.txt", "\n".join(" ".join(document) for document in DOCUMENTS))
    config.documents = "line"
    assert list(read_documents(config)) == DOCUMENTS


def test_jsonl_gives_the_named_field(tmp_path):
    lines = [json.dumps({"id": 1, "body": " ".join(document)}) for document in DOCUMENTS]
    config = write(tmp_path / "a.jsonl", "\n\n".join(lines))
    config.text_field = "body"
    assert list(read_documents(config)) == DOCUMENTS


def test_jsonl_null_is_an_empty_document(tmp_path):
    config = write(tmp_path / "a.jsonl", '{"text": null}\n{"text": "one"}\n')
    assert list(read_documents(config)) == [["one"]]


def test_half_a_character_in_jsonl_is_replaced(tmp_path):
    config = write(tmp_path / "a.jsonl", r'{"text": "one \ud83d two \ud83d\ude00"}')
    assert list(read_documents(config)) == [["one \ufffd two 😀"]]


def test_saved_dataset_gives_the_same_documents(tmp_path):
    from datasets import Dataset

    rows = Dataset.from_dict({"text": [" ".join(document) for document in DOCUMENTS]})
    rows.save_to_disk(tmp_path / "saved")
    assert list(read_documents(CorpusConfig(files=[str(tmp_path / "saved")]))) == DOCUMENTS


def test_patterns_expand_in_order_and_files_follow_each_other(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(name, encoding="utf-8")
    config = CorpusConfig(files=[str(tmp_path / "c.txt"), str(tmp_path / "[ab].txt")])
    assert list(read_documents(config)) == [["c"], ["a"], ["b"]]
    config.files += [
        str(tmp_path / "*.txt"),
        str(tmp_path / "b.txt"),
    ]  # what is named again is not read again
    assert list(read_documents(config)) == [["c"], ["a"], ["b"]]


def test_a_file_that_is_spelt_in_two_ways_is_read_once(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config = CorpusConfig(files=["a.txt", "./*.txt", str(tmp_path / "a.txt"), f"../{tmp_path.name}/a.txt"])
    assert list(read_documents(config)) == [["one"]]


def test_a_file_whose_name_looks_like_a_pattern_is_read(tmp_path):
    config = write(tmp_path / "part[1].txt", "one")
    assert list(read_documents(config)) == [["one"]]


def test_documents_are_streamed(tmp_path):
    """The first document is there before a broken line after it is read."""
    config = write(tmp_path / "a.jsonl", '{"text": "one"}\nbroken\n')
    documents = read_documents(config)
    assert next(documents) == ["one"]
    with pytest.raises(ValueError, match=r"a\.jsonl line 2 .*text_field"):
        next(documents)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. No? Yes! No.", ["Dr.", "No?", "Yes!", "No."]),
        ("version 3.11 costs 1.5 more", ["version 3.11 costs 1.5 more"]),
        ("好。真的吗？是！", ["好。", "真的吗？", "是！"]),
        ("one\n\ntwo", ["one", "two"]),
    ],
)
def test_sentences_end_at_marks_and_line_ends(text, sentences):
    assert [sentence for sentence in split_sentences(text) if sentence] == sentences


@pytest.mark.parametrize("line", ["[1, 2]", "3", '"text"', '{"other": "x"}', '{"text": "x"'])
def test_a_jsonl_line_without_the_field_is_named(tmp_path, line):
    with pytest.raises(ValueError, match=r"a\.jsonl line 1 .*\"text\""):
        list(read_documents(write(tmp_path / "a.jsonl", line)))


def test_bytes_that_are_no_text_are_named_with_their_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"a\.txt.*UTF-8"):
        list(read_documents(CorpusConfig(files=[str(tmp_path / "a.txt")])))


@pytest.mark.parametrize("pattern", ["none.txt", "none*.txt"])
def test_a_missing_file_is_named(tmp_path, pattern):
    with pytest.raises(ValueError, match=r"none.*give an existing file"):
        list(read_documents(CorpusConfig(files=[str(tmp_path / pattern)])))


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.pdf is of no known kind; give \.txt"):
        list(read_documents(write(tmp_path / "a.pdf", "x")))


def test_a_folder_that_holds_no_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no folder saved by"):
        list(read_documents(CorpusConfig(files=[str(tmp_path)])))


def test_a_dataset_without_the_column_is_refused(tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"body": ["x"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r'no column "text"; it has .*body'):
        list(read_documents(CorpusConfig(files=[str(tmp_path / "saved")])))


def test_a_dataset_of_several_splits_is_refused(tmp_path):
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_dict({"text": ["x"]})).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="several splits; give the folder of one"):
        list(read_documents(CorpusConfig(files=[str(tmp_path / "saved")])))


def test_no_file_at_all_is_refused():
    with pytest.raises(ValueError, match=r"no file given; set --corpus\.files"):
        list(read_documents(CorpusConfig(files=[])))


def test_check_passes_with_enough_documents(tmp_path):
    check_corpus(write(tmp_path / "a.txt", "one\n\ntwo"), least=2)


def test_check_refuses_too_few_documents(tmp_path):
    with pytest.raises(ValueError, match=r"a\.txt holds 1 document.*packing\.method full"):
        check_corpus(write(tmp_path / "a.txt", "one\ntwo"), least=2)


def test_check_refuses_a_corpus_without_text(tmp_path):
    with pytest.raises(ValueError, match=r"a\.txt holds no text"):
        check_corpus(write(tmp_path / "a.txt", " \n\n"), least=1)
