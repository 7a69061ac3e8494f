"""Sentences become the tokenizer's own ids, whether words are remembered or not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from data_pipeline import tokenising
from data_pipeline.tokenising import CONTINUES, SentenceTokenizer, continuing_prefix
from data_pipeline.vocabulary import Vocabulary, load_vocabulary

# Spaces of many kinds, marks that combine, controls, CJK, specials, and ordinary words.
ODD = [
    "[MASK]",
    "[SEP]x",
    "a\u0301",
    "\u0301",
    "\u00a0",
    "\u3000",
    "\x1c",
    "\t",
    "ΣΑΣ",
    "中文",
    "don't",
    "\u200b",
    "ﬁ",
]
sentences = st.lists(
    st.one_of(st.text(max_size=12), st.sampled_from([*ODD, "the", "film", "was", "."])), max_size=8
).map(" ".join)


@pytest.fixture(scope="module")
def vocabulary(tiny_tokenizer) -> Vocabulary:
    return load_vocabulary(tiny_tokenizer)


def plain(vocabulary: Vocabulary, sentence: str) -> list[int]:
    return vocabulary.tokenizer.encode(sentence, add_special_tokens=False).ids


@given(st.lists(sentences, max_size=6))
def test_remembered_words_give_the_tokenizers_own_ids(vocabulary, batch):
    tokenise = SentenceTokenizer(vocabulary)
    assert tokenise.by_word
    expected = [plain(vocabulary, sentence) for sentence in batch]
    assert tokenise(batch) == expected
    assert tokenise(batch) == expected  # from memory


def test_memory_is_bounded(vocabulary, monkeypatch):
    monkeypatch.setattr(tokenising, "REMEMBERED_TOKENS", 50)
    tokenise = SentenceTokenizer(vocabulary)
    for number in range(100):
        batch = [f"word{number} and {'x' * (number % 9)} more"]
        assert tokenise(batch) == [plain(vocabulary, batch[0])]
        assert sum(1 + len(ids) for ids in tokenise._known.values()) == tokenise._remembered < 150


def test_an_added_token_with_a_space_is_seen(vocabulary):
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    tokenizer.add_tokens(["new york"])
    tokenise = SentenceTokenizer(Vocabulary(tokenizer, 2, 3, 0, 4, 1, 300, "x"))
    assert not tokenise.by_word
    assert tokenise(["the new york film"])[0].count(tokenizer.token_to_id("new york")) == 1


def byte_level() -> Vocabulary:
    symbols = {letter: n for n, letter in enumerate(["Ġ", *"abcdefgh"])}
    tokenizer = Tokenizer(models.BPE(symbols | {"Ġa": 9, "Ġab": 10}, [("Ġ", "a"), ("Ġa", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Vocabulary(tokenizer, 0, 0, 0, 0, 0, 11, "x")


def test_byte_level_sentences_begin_as_words_within_a_text_do():
    assert SentenceTokenizer(byte_level())(["ab a"]) == [[10, 9]]


def test_other_normalizers_are_called_for_every_sentence(vocabulary):
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    tokenizer.normalizer = normalizers.Replace("a b", "c")
    tokenise = SentenceTokenizer(Vocabulary(tokenizer, 2, 3, 0, 4, 1, 300, "x"))
    assert tokenise(["a b d"]) == [tokenizer.encode("a b d", add_special_tokens=False).ids]


@pytest.mark.parametrize(
    ("model", "prefix"),
    [
        (models.WordPiece({"a": 0, "##b": 1, "\u0120": 2}), "##"),
        (models.WordPiece({"a": 0, "\u2581": 1}, continuing_subword_prefix=""), ""),
        (models.BPE({"\u0120a": 0, "#": 1, "##": 2}, [("#", "#")]), None),
        (models.Unigram([("\u2581a", 0.0), ("##", -1.0)]), None),
        (models.WordLevel({"a": 0, "##": 1}), ""),
    ],
    ids=["wordpiece", "unmarked", "byte-level", "sentencepiece", "words"],
)
def test_a_model_says_what_marks_the_tokens_that_go_on_with_a_word(model, prefix):
    assert continuing_prefix(Vocabulary(Tokenizer(model), 0, 0, 0, 0, 0, 3, "")) == prefix


@given(st.lists(sentences, max_size=6))
def test_words_are_marked_as_the_tokenizer_cuts_them(vocabulary, batch):
    marked = SentenceTokenizer(vocabulary, "word")(batch)
    for sentence, ids in zip(batch, marked, strict=True):
        encoding = vocabulary.tokenizer.encode(sentence, add_special_tokens=False)
        assert [token & ~CONTINUES for token in ids] == encoding.ids
        pieces = [token.startswith("##") for token in encoding.tokens]
        assert [bool(token & CONTINUES) for token in ids] == pieces


def test_chinese_words_are_marked_as_jieba_cuts_them():
    pytest.importorskip("jieba")
    letters = {token: n for n, token in enumerate(["[UNK]", *"我们在北京大学学习"])}
    tokenizer = Tokenizer(models.WordPiece(letters, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenise = SentenceTokenizer(Vocabulary(tokenizer, 0, 0, 0, 0, 0, 11, "x"), "chinese_word")
    (ids,) = tokenise(["我们在北京大学学习"])
    assert [bool(token & CONTINUES) for token in ids] == [
        False,
        True,
        False,
        False,
        True,
        True,
        True,
        False,
        True,
    ]
