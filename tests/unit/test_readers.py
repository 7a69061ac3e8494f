"""Every kind of corpus gives the same documents, each once, however it is cut."""

import bz2
import gzip
import http.server
import json
import lzma
import os
import re
import sys
import threading
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import readers
from data_pipeline.corpus import corpus_pieces, read_documents
from data_pipeline.outage import Outage
from data_pipeline.settings import CorpusConfig

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DOCUMENTS = [["One one.", "Two two."], ["Three."], ["Four é 中.", "Five."], ["Six."]]
TEXT = "\n\n".join("\n".join(document) for document in DOCUMENTS) + "\n"
COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd.compress}

# Texts with any spacing between lines and documents, and a text or none at either end.
texts = st.lists(st.sampled_from(["a.", "bb b", "é中", "", "  ", "\r"]), max_size=30).map("\n".join)


def documents_in(config: CorpusConfig, size: int) -> list[list[str]]:
    """All documents, every piece read by itself as another process would."""
    return [document for piece in corpus_pieces(config, size) for document in piece.documents()]


@given(texts, st.integers(1, 40))
def test_a_text_gives_each_document_once_however_it_is_cut(tmp_path_factory, text, size):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    config = CorpusConfig(files=[str(path)])
    assert documents_in(config, size) == list(read_documents(config))


@given(texts, st.integers(1, 40))
def test_lines_come_once_however_they_are_cut(tmp_path_factory, text, size):
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes(text.encode())
    config = CorpusConfig(files=[str(path)], documents="line")
    expected = [[line.strip()] for line in text.split("\n") if line.strip()]
    assert documents_in(config, size) == list(read_documents(config)) == expected


def test_a_text_without_blank_lines_is_one_document_and_read_once(tmp_path):
    """Pieces in which no document begins end at their bound, not at the file's end."""
    path = tmp_path / "a.txt"
    path.write_text("a line of text\n" * 500, encoding="utf-8")
    pieces = corpus_pieces(CorpusConfig(files=[str(path)]), 500)
    read = [(list(piece.documents()), piece.parts[0][0].done) for piece in pieces]
    assert [len(documents) for documents, _ in read] == [1] + [0] * (len(pieces) - 1)
    assert len(read[0][0][0]) == 500
    assert sum(done for _, done in read[1:]) < 8500


def test_a_very_long_document_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 100)
    path = tmp_path / "a.txt"
    path.write_text("a line of text\n" * 50, encoding="utf-8")
    documents = list(read_documents(CorpusConfig(files=[str(path)])))
    assert sum(map(len, documents)) == 50
    assert max(len(document) for document in documents) == 7


def test_small_files_are_put_together(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02d}.txt").write_text("x" * 100, encoding="utf-8")
    pieces = corpus_pieces(CorpusConfig(files=[str(tmp_path / "*.txt")]), 500)
    assert [len(piece.parts) for piece in pieces] == [6, 6, 6, 2]


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("parts", [1, 3])
def test_compressed_texts_of_one_stream_or_several(tmp_path, kind, parts):
    """Tools that compress in parallel write several streams one after another."""
    data, compress = TEXT.encode(), COMPRESS[kind]
    cuts = [len(data) * n // parts for n in range(parts + 1)]
    path = tmp_path / f"a.txt.{kind}"
    path.write_bytes(b"".join(compress(data[a:b]) for a, b in pairwise(cuts)))
    assert list(read_documents(CorpusConfig(files=[str(path)]))) == DOCUMENTS


def test_an_ending_in_capitals_is_one(tmp_path):
    (tmp_path / "A.TXT.GZ").write_bytes(COMPRESS["gz"](TEXT.encode()))
    assert list(read_documents(CorpusConfig(files=[str(tmp_path / "A.TXT.GZ")]))) == DOCUMENTS


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_compressed_text_that_is_cut_off_is_named(tmp_path, kind):
    data = COMPRESS[kind](os.urandom(5000).hex().encode())
    path = tmp_path / f"a.txt.{kind}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"a\.txt\.{kind} is damaged after \d+ bytes"):
        list(read_documents(CorpusConfig(files=[str(path)])))


def test_text_that_is_not_utf_8_is_named_with_its_place(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\n\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text at byte 6"):
        list(read_documents(CorpusConfig(files=[str(tmp_path / "a.txt")])))


@pytest.mark.parametrize("size", [1, 60, 10_000])
def test_jsonl_by_pieces(tmp_path, size):
    path = tmp_path / "a.jsonl.gz" if size == 1 else tmp_path / "a.jsonl"
    text = "".join(json.dumps({"body": " ".join(document)}) + "\n" for document in DOCUMENTS).encode()
    path.write_bytes(gzip.compress(text) if size == 1 else text)
    assert documents_in(CorpusConfig(files=[str(path)], text_field="body"), size) == DOCUMENTS


def test_a_bad_json_line_is_named_by_its_number_from_any_piece(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 20 + "no json\n", encoding="utf-8")
    piece = corpus_pieces(CorpusConfig(files=[str(path)]), 50)[-1]
    with pytest.raises(ValueError, match="line 21 is no JSON object"):
        list(piece.documents())


@pytest.mark.parametrize("size", [1, 40, 10_000])
def test_parquet_by_row_groups(tmp_path, size):
    import pyarrow
    from pyarrow import parquet

    texts = [" ".join(document) for document in DOCUMENTS] + [None]
    table = pyarrow.table({"text": texts, "other": [1] * 5})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    config = CorpusConfig(files=[str(tmp_path / "a.parquet")])
    assert documents_in(config, size) == DOCUMENTS
    if size == 1:
        assert len(corpus_pieces(config, size)) == 3


@pytest.mark.parametrize("size", [1, 700, 900, 10_000])
def test_what_is_done_of_a_piece_grows_to_its_size(tmp_path, size):
    """Whether its parts are of one file, as the row groups of a table, or of several."""
    import pyarrow
    from pyarrow import parquet

    texts = [f"{number} {'word ' * 20}" for number in range(12)]
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", row_group_size=5)
    for name in ("b", "c"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts), encoding="utf-8")
    for piece in corpus_pieces(CorpusConfig(files=[str(tmp_path / "*")]), size):
        done = [piece.done for _ in piece.documents()]
        assert done == sorted(done)
        assert all(number <= piece.size for number in done)
        assert piece.done == piece.size


def test_a_row_group_is_read_bit_by_bit(tmp_path, monkeypatch):
    """Tools write a million rows into one: memory must not grow with it."""
    import pyarrow
    from pyarrow import parquet

    path, opened, plainly = tmp_path / "a.parquet", [], readers._open

    def noted(path: str):
        opened.append(plainly(path))
        return opened[-1]

    parquet.write_table(
        pyarrow.table({"text": [os.urandom(5000).hex() for _ in range(2000)]}), path, use_dictionary=False
    )
    monkeypatch.setattr(readers, "_open", noted)
    documents = read_documents(CorpusConfig(files=[str(path)]))
    next(documents)
    size = path.stat().st_size
    assert opened[-1].tell() < 0.75 * size
    assert sum(1 for _ in documents) == 1999


def test_bad_parquet_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"a\.parquet can't be read .*fetch it again"):
        corpus_pieces(CorpusConfig(files=[str(tmp_path / "a.parquet")]), 100)


@pytest.mark.parametrize("size", [1, 10_000])
def test_saved_datasets_by_rows(tmp_path, size):
    from datasets import Dataset

    Dataset.from_dict({"text": [" ".join(document) for document in DOCUMENTS]}).save_to_disk(
        tmp_path / "saved"
    )
    assert documents_in(CorpusConfig(files=[str(tmp_path / "saved")]), size) == DOCUMENTS


def test_a_streamed_data_set_by_its_files(tmp_path):
    """What `datasets` streams from its hub it streams from a folder in the same way."""
    for number, document in enumerate(DOCUMENTS):
        line = json.dumps({"text": " ".join(document)})
        (tmp_path / f"part-{number}.jsonl").write_text(line + "\n", encoding="utf-8")
    config = CorpusConfig(files=[f"hub:{tmp_path}"])
    assert documents_in(config, 100) == DOCUMENTS
    assert len(corpus_pieces(config, 100)) == 4


def test_a_data_set_that_can_not_be_reached_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"hub:\S+ can't be streamed"):
        corpus_pieces(CorpusConfig(files=[f"hub:{tmp_path}/none"]), 100)


@pytest.mark.parametrize(("damaged", "told"), [("a", "can't be streamed"), ("b", "can't be read")])
def test_a_damaged_file_of_a_streamed_data_set_is_named(tmp_path, damaged, told):
    """The first file is looked at before any document is read."""
    content = gzip.compress(b'{"text": "one"}\n' * 99)
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(content[:-12] if name == damaged else content)
    with pytest.raises(ValueError, match=f"corpus: hub:{tmp_path} {told}.*ended before"):
        list(read_documents(CorpusConfig(files=[f"hub:{tmp_path}"])))


DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">
<page><title>A</title><ns>0</ns>
<revision><text>'''Bold''' and [[link|words]]. {{box|x=1}}More.</text></revision></page>
<page><title>B</title><ns>1</ns><revision><text>A talk page.</text></revision></page>
<page><title>C</title><ns>0</ns><redirect title="A"/>
<revision><text>#REDIRECT [[A]]</text></revision></page>
<page><title>D</title><ns>0</ns><revision><text>Last one.</text></revision></page>
</mediawiki>
"""


def test_a_wikipedia_dump_gives_its_articles_without_markup(tmp_path):
    pytest.importorskip("mwparserfromhell")
    path = tmp_path / "pages-articles.xml.bz2"
    path.write_bytes(bz2.compress(DUMP.encode()))
    assert list(read_documents(CorpusConfig(files=[str(path)]))) == [
        ["Bold and words.", "More."],
        ["Last one."],
    ]


def test_a_damaged_dump_is_named(tmp_path):
    pytest.importorskip("mwparserfromhell")
    (tmp_path / "a.xml").write_text(DUMP[:300], encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.xml is damaged"):
        list(read_documents(CorpusConfig(files=[str(tmp_path / "a.xml")])))


def test_a_question_mark_in_a_local_name_is_no_query(tmp_path):
    (tmp_path / "what?.txt.gz").write_bytes(gzip.compress(b"one\n"))
    assert list(read_documents(CorpusConfig(files=[str(tmp_path / "what?.txt.gz")]))) == [["one"]]


def test_a_file_of_no_known_kind_is_refused(tmp_path):
    (tmp_path / "a.pdf").write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.pdf is of no known kind; give \.txt"):
        corpus_pieces(CorpusConfig(files=[str(tmp_path / "a.pdf")]), 100)


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_a_corpus_behind_a_url(tmp_path: Path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.txt"
        assert list(read_documents(CorpusConfig(files=[url]))) == DOCUMENTS
        with pytest.raises(ValueError, match=r"missing\.txt does not exist"):
            list(read_documents(CorpusConfig(files=[url.replace("a.txt", "missing.txt")])))
    finally:
        server.shutdown()
        server.server_close()


class _CutOff(_Silent):
    """Sends half of what it says it will."""

    def copyfile(self, source: BinaryIO, out: BinaryIO) -> None:
        data = source.read()
        out.write(data[: len(data) // 2])
        self.close_connection = True


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl.zst", "a.parquet", "a.xml.bz2", "*.txt"])
def test_a_transfer_that_breaks_off_is_an_outage_that_names_the_url(tmp_path, name):
    if "xml" in name:
        pytest.importorskip("mwparserfromhell")
    (tmp_path / name).write_bytes(os.urandom(3000))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_CutOff, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        with pytest.raises(Outage, match=f"corpus: {re.escape(url)} can't be read"):
            list(read_documents(CorpusConfig(files=[url])))
    finally:
        server.shutdown()
        server.server_close()


def test_a_pattern_may_reach_into_every_folder_below(tmp_path):
    for name in ("0.txt", "x/1.txt", "x/y/2.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(f"text {name}", encoding="utf-8")
    found = list(read_documents(CorpusConfig(files=[str(tmp_path / "**" / "*.txt")])))
    assert found == [["text 0.txt"], ["text x/1.txt"], ["text x/y/2.txt"]]


@pytest.mark.parametrize("value", [["a list"], {"an": "object"}, 3])
def test_what_is_no_text_is_refused(tmp_path, value):
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "a.jsonl").write_text(json.dumps({"text": value}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl .*line 1 is no JSON object with text in the field"):
        list(read_documents(CorpusConfig(files=[str(tmp_path / "a.jsonl")])))
    parquet.write_table(pyarrow.table({"text": [value]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r'a\.parquet holds (list|dict|int) in the column "text"'):
        list(read_documents(CorpusConfig(files=[str(tmp_path / "a.parquet")])))


def test_parquet_pieces_are_sized_by_the_texts_own_column(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(
        {"meta": [{"a": 1, "b": 2}] * 8, "text": ["word " * 2000 + str(n) for n in range(8)]}
    )
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    assert len(corpus_pieces(CorpusConfig(files=[str(tmp_path / "a.parquet")]), 10_000)) == 8


def test_damage_inside_a_compressed_text_is_named(tmp_path):
    data = bytearray(bz2.compress(os.urandom(50_000).hex().encode()))
    data[len(data) // 2] ^= 255
    (tmp_path / "a.txt.bz2").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.txt\.bz2 is damaged after \d+ bytes"):
        list(read_documents(CorpusConfig(files=[str(tmp_path / "a.txt.bz2")])))


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST_LINE", 100)
    (tmp_path / "a.txt").write_text("x" * 1000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.txt at byte 0: a line of more than"):
        list(read_documents(CorpusConfig(files=[str(tmp_path / "a.txt")])))
