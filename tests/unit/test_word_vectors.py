"""Word vectors of every kind of file give the same table; damaged files are named; words are cut alike."""

import gzip
import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from data_pipeline.settings import TaskConfig, WordsConfig
from data_pipeline.vocabulary import load_vocabulary
from data_pipeline.word_vectors import check_vectors, fasttext_hash, read_vectors, train_vectors
from data_pipeline.words import SPECIAL, build_tokenizer, known_words, write_vocabulary
from distill.settings import StudentConfig
from distill.student import build_student, table, teacher_vectors, whole_words

WORDS = ["soup", "waiter", "café", "n't"]
VECTORS = np.random.default_rng(0).normal(size=(len(WORDS), 6)).astype(np.float32)


def write(path: Path, header: bool) -> str:
    """A text file, or a binary one by its name; more words than anybody asks for."""
    binary, rows = path.suffix == ".bin", [("other", VECTORS[0] * 2), *zip(WORDS, VECTORS, strict=True)]
    content = f"{len(rows)} 6\n".encode() if header else b""
    for word, vector in rows:
        numbers = (
            vector.tobytes() + b"\n" if binary else " ".join(map(repr, vector.tolist())).encode() + b"\n"
        )
        content += word.encode() + b" " + numbers
    if path.suffix == ".gz":
        content = gzip.compress(content)
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "header"), [("glove.txt", False), ("w2v.txt", True), ("wiki.vec", True), ("w2v.bin", True),
                         ("glove.txt.gz", False)],
)  # fmt: skip
def test_every_kind_of_file_gives_the_words_asked_for(tmp_path, name, header):
    path = write(tmp_path / name, header)
    assert check_vectors(path) == 6
    found = read_vectors(path, [*WORDS[:3], "unheard"])
    assert list(found) == WORDS[:3]
    np.testing.assert_array_equal(np.stack(list(found.values())), VECTORS[:3])


def test_a_word_with_spaces_is_read_from_the_right(tmp_path):
    (tmp_path / "a.txt").write_text("soup 1 2 3\n. . . 4 5 6\nwaiter 7 8 9\n")
    assert set(read_vectors(str(tmp_path / "a.txt"), ["waiter", "soup"])) == {"soup", "waiter"}


def test_memory_is_that_of_the_words_asked_for(tmp_path):
    line = " ".join(["0.12345"] * 300)
    (tmp_path / "a.txt").write_text("".join(f"w{number} {line}\n" for number in range(3000)))
    tracemalloc.start()
    read_vectors(str(tmp_path / "a.txt"), ["w7"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (tmp_path / "a.txt").stat().st_size / 10


def test_a_blank_line_at_the_end_is_passed_over(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"soup 1 2 3\n\n")
    assert read_vectors(str(tmp_path / "a.txt"), ["soup"])["soup"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"hello world\n", "is no file of word vectors"),
        ("a.txt", b"", "is no file of word vectors"),
        ("a.txt", b"soup 1 2 3\nwaiter 1 2\n", "line 2 has no 3 numbers; is it cut off?"),
        ("a.txt", b"soup 1 2 3\nwaiter 1 x 2\n", "line 2 holds no numbers"),
        ("a.txt", b"soup 1 nan 3\n", 'the vector of "soup" is damaged'),
        ("a.txt", b"other 1 2 3\n", "holds none of the"),
        ("a.bin", b"2 3\nsoup " + np.ones(3, "<f4").tobytes(), "ends at word 1 of 2; is it cut off?"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^words\.vectors: ") as error:
        read_vectors(str(tmp_path / name), ["soup", "waiter"])
    assert message in str(error.value)


def write_fasttext(path: Path, rows: np.ndarray, words: list[str], bucket: int, most: int = 4) -> None:
    """A model as fastText's C++ code saves it, with n-grams of 3 to `most` letters; 0 for none."""
    head = struct.pack(
        "<2i12id", 793712314, 12, rows.shape[1], 5, 5, 1, 5, 1, 1, 2, bucket, 3, most, 0, 1e-4
    )
    dictionary = struct.pack("<iiiqq", len(words), len(words), 0, 100, -1)
    entries = b"".join(word.encode() + b"\0" + struct.pack("<qb", 1, 0) for word in words)
    matrix = b"\0" + struct.pack("<qq", *rows.shape) + rows.astype("<f4").tobytes()
    path.write_bytes(head + dictionary + entries + matrix)


def test_a_fasttext_model_makes_vectors_of_n_grams(tmp_path):
    bucket, words = 10, ["soup", "</s>"]
    rows = np.random.default_rng(1).normal(size=(len(words) + bucket, 5)).astype(np.float32)
    write_fasttext(tmp_path / "m.bin", rows, words, bucket)
    found = read_vectors(str(tmp_path / "m.bin"), ["soup", "soups", "[PAD]"])

    def grams(word: str) -> list[str]:
        marked = f"<{word}>"
        return [marked[i : i + n] for n in (3, 4) for i in range(len(marked) - n + 1)]

    def places(word: str) -> list[int]:
        return [len(words) + fasttext_hash(gram.encode()) % bucket for gram in grams(word)]

    assert set(found) == {"soup", "soups"}
    np.testing.assert_allclose(found["soup"], rows[[0, *places("soup")]].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["soups"], rows[places("soups")].mean(axis=0), rtol=1e-6)


def test_a_fasttext_model_without_n_grams_that_knows_no_word_is_refused(tmp_path):
    write_fasttext(tmp_path / "m.bin", np.ones((1, 5), np.float32), ["soup"], 0, most=0)
    with pytest.raises(ValueError, match="holds none of the 1 words"):
        read_vectors(str(tmp_path / "m.bin"), ["stew"])


def test_the_hash_is_fnv_1a():
    assert fasttext_hash(b"") == 2166136261
    assert fasttext_hash(b"a") == 0xE40C292C
    assert fasttext_hash(b"foobar") == 0xBF9CF968


# ---- vocabularies


def test_words_are_cut_as_the_treebank_does():
    tokenizer = build_tokenizer(["Don't I'm it 's CAFÉ art-house, 中国"], WordsConfig())
    words = tokenizer.encode("don't I'm it's café Art-house 国 unheard [MASK]").tokens
    assert words[:-2] == ["do", "n't", "i", "'m", "it", "'s", "cafe", "art", "-", "house", "国"]
    assert words[-2:] == ["[UNK]", "[MASK]"]


def test_a_vocabulary_is_bounded_and_begins_with_the_most_frequent(tmp_path):
    tokenizer = build_tokenizer(["b a a a b c"], WordsConfig(most=2), ["more"])
    assert known_words(tokenizer) == [*SPECIAL, "a", "b"]
    write_vocabulary(tokenizer, tmp_path / "v")
    vocabulary = load_vocabulary(str(tmp_path / "v"))
    assert (vocabulary.pad, vocabulary.unk, vocabulary.mask) == (0, 1, 4)
    assert vocabulary.tokenizer.encode("a b", "b").type_ids == [0, 0, 0, 1]


def test_rare_words_are_left_out_and_others_words_added():
    tokenizer = build_tokenizer(["a a b"], WordsConfig(least=2), ["soup", "a"])
    assert known_words(tokenizer) == [*SPECIAL, "a", "soup"]


# ---- vectors without a file


def test_words_of_like_company_get_like_vectors():
    rng = np.random.default_rng(0)
    frames = (
        ["the {} was served hot", "we ate the {} with bread"],
        ["the {} drove fast", "park the {} outside"],
    )
    lines = [
        rng.choice(frames[kind]).format(rng.choice([("soup", "stew"), ("car", "truck")][kind]))
        for kind in rng.integers(0, 2, 400)
    ]
    tokenizer = build_tokenizer(lines, WordsConfig())
    vectors = train_vectors(tokenizer, [lines], 4)
    again = train_vectors(tokenizer, [lines[:150], lines[150:]], 4)  # where documents end is nothing to it
    for word, vector in vectors.items():
        np.testing.assert_allclose(again[word], vector, atol=1e-5)

    def like(a: str, b: str) -> float:
        return float(vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b]))

    assert like("soup", "stew") > 0.9 > like("soup", "car") + 0.3


def test_a_corpus_of_one_word_is_refused():
    tokenizer = build_tokenizer(["ha ha"], WordsConfig())
    with pytest.raises(ValueError, match=r"words\.corpus: no word stands beside another"):
        train_vectors(tokenizer, [["ha ha ha", "ha ha"]], 4)


def test_a_student_may_know_a_single_word(tiny_model, tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nsoup soup cab\t1\n", encoding="utf-8")
    task = TaskConfig(str(tmp_path / "train.tsv"), str(tmp_path / "train.tsv"))
    student = StudentConfig("cnn", words=WordsConfig(size=4, most=1))
    model, _ = build_student(student, tiny_model, task, ["1"], tmp_path)
    assert model.get_input_embeddings().weight.isfinite().all()


def test_a_teachers_table_gives_words_the_mean_of_their_pieces(tiny_model):
    from transformers import AutoModel

    weights = AutoModel.from_pretrained(tiny_model).get_input_embeddings().weight.detach().numpy()
    tokenizer = load_vocabulary(tiny_model).tokenizer
    found = teacher_vectors(tiny_model, ["soup", "zyx"], size=32)
    raw = {w: weights[tokenizer.encode(w, add_special_tokens=False).ids].mean(0) for w in found}
    np.testing.assert_allclose(found["soup"] - found["zyx"], raw["soup"] - raw["zyx"], rtol=1e-4, atol=1e-6)


def test_fewer_components_keep_the_distances_that_there_are(tiny_model):
    words = ["soup", "waiter", "cab"]
    wide, narrow = (teacher_vectors(tiny_model, words, size) for size in (32, 2))
    assert narrow["soup"].shape == (2,)  # three points lie in a plane
    for a, b in (("soup", "waiter"), ("soup", "cab")):
        distance = np.linalg.norm(wide[a] - wide[b])
        assert np.linalg.norm(narrow[a] - narrow[b]) == pytest.approx(distance, rel=1e-3)


def test_whole_words_of_either_kind_of_vocabulary(tiny_model, tmp_path):
    words = whole_words(tiny_model, lower_case=True)
    assert "soup" in words
    assert not [word for word in words if word.startswith(("#", "["))]
    marked = Tokenizer(
        models.WordLevel({"<s>": 0, "\u0120The": 1, "ing": 2, "\u0120cafÃ©": 3}, unk_token="<s>")
    )
    marked.decoder = decoders.ByteLevel()
    marked.save(str(tmp_path / "tokenizer.json"))
    names = {f"{name}_token": "<s>" for name in ("cls", "sep", "pad", "mask", "unk")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    assert whole_words(str(tmp_path), lower_case=True) == ["the", "café"]


def test_cased_words_stay_cased(tiny_model, tmp_path):
    """The task's own and those of the model."""
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    text = (base / "tokenizer.json").read_text(encoding="utf-8")
    (base / "tokenizer.json").write_text(text.replace('"soup"', '"Soup"'), encoding="utf-8")
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nThe Café\t1\n", encoding="utf-8")
    task = TaskConfig(str(tmp_path / "train.tsv"), str(tmp_path / "train.tsv"))
    student = StudentConfig("cnn", words=WordsConfig(size=4, lower_case=False))
    _, vocabulary = build_student(student, str(base), task, ["1"], tmp_path)
    words = known_words(load_vocabulary(vocabulary).tokenizer)
    assert {"The", "Café", "Soup"} <= {*words}


def test_a_table_has_zeros_for_padding_and_the_mean_for_the_unknown():
    vectors = {"a": np.array([1.0, 3.0], np.float32), "b": np.array([3.0, 5.0], np.float32)}
    result = table([*SPECIAL, "b", "x", "a"], vectors)
    np.testing.assert_array_equal(result[[0, 1, 5, 7]], [[0, 0], [2, 4], [3, 5], [1, 3]])
    assert np.abs(result[6]).max() > 0


@pytest.mark.parametrize("bytes_left", [4, 40, 70])
def test_a_fasttext_model_that_is_cut_off_is_refused(tmp_path, bytes_left):
    path = tmp_path / "cut.bin"
    path.write_bytes((struct.pack("<2i", 793712314, 12) + bytes(200))[:bytes_left])
    with pytest.raises(ValueError, match="cut off or damaged"):
        read_vectors(str(path), {"a"})
