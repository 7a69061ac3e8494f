"""Augmentation: words, draws, noise, and candidates against one forward pass a word."""

import json
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import RobertaProcessing
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    RobertaConfig,
)

from data_pipeline.augment import (
    SURE,
    Word,
    begin_pieces,
    cased,
    join,
    original_rows,
    read,
    replaced_variants,
    row,
    words_of,
    write_piece,
)
from data_pipeline.noise import (
    Tagged,
    jieba_tags,
    noisy_variants,
    tagger,
    textblob_tags,
    untagged_words,
    words_by_tag,
)
from data_pipeline.settings import AugmentConfig, NoiseConfig, TaskConfig
from data_pipeline.tasks import Examples, label_set
from data_pipeline.vocabulary import Vocabulary, copy_tokenizer, load_vocabulary
from distill import candidates
from distill.augment import _Judge, _show, masked_candidates
from distill.candidates import (
    Context,
    MaskedWords,
    Neighbours,
    chinese_words,
    is_maskable,
    whole_entries,
)
from distill.encoders import model_inputs
from distill.int8 import has_int8
from distill.read_places import reading
from tests.helpers import tiny_tokens

TEXT = "The kitchen was not dreadful , was it ?"
DEVICE = torch.device("cpu")


@pytest.fixture(scope="module", params=["bert", "two separators"])
def model(request, tmp_path_factory, tiny_tokenizer) -> str:
    """A tiny masked language model with random weights."""
    folder = tmp_path_factory.mktemp("mlm")
    config = BertConfig(
        vocab_size=len(tiny_tokens()),
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    copy_tokenizer(tiny_tokenizer, folder)
    if request.param != "bert":
        vocabulary = load_vocabulary(tiny_tokenizer)
        other = type(vocabulary.tokenizer).from_str(vocabulary.tokenizer.to_str())
        other.post_processor = RobertaProcessing(("[SEP]", vocabulary.sep), ("[CLS]", vocabulary.cls))
        other.save(str(folder / "tokenizer.json"))
    return str(folder)


def settings(model: str, **changes) -> AugmentConfig:
    return AugmentConfig(file="none", model=model, candidates=6, **changes)


def words(text: str, tokenizer: str, unit: str = "word") -> list[str]:
    encoding = load_vocabulary(tokenizer).tokenizer.encode(text, add_special_tokens=False)
    return [word.of(text) for word in words_of(text, encoding, unit)]


# ---- words and draws


def test_words_are_of_letters_and_no_stop_words(tiny_tokenizer):
    assert words("It's the 2nd kitchen, clichés aren't dreadful!", tiny_tokenizer) == [
        "kitchen", "clichés", "dreadful"
    ]  # fmt: skip
    assert words("the of 17 ...", tiny_tokenizer) == []


def test_words_of_several_pieces_have_all_their_tokens(tiny_tokenizer):
    encoding = load_vocabulary(tiny_tokenizer).tokenizer.encode("kitchen abc", add_special_tokens=False)
    assert words_of("kitchen abc", encoding, "word") == [Word(0, 7, 0, 0), Word(8, 11, 1, 3)]


def test_chinese_words_are_jiebas(tiny_tokenizer):
    assert words("我们在北京工作", tiny_tokenizer, "chinese_word") == ["北京", "工作"]


def test_variants_change_words_alone():
    pairs = [(Word(4, 11, 1, 1), ["room", "garden"]), (Word(21, 29, 4, 4), ["fine"])]
    found = replaced_variants(TEXT.replace("not ", "not  "), pairs, settings("", variants=200), [0, 1])
    expected = {
        f"The {first} was not  {second} , was it ?"
        for first in ("kitchen", "room", "garden")
        for second in ("dreadful", "fine")
    } - {TEXT.replace("not ", "not  ")}
    assert set(found) == expected
    assert len(found) == len(expected)


def test_words_are_replaced_as_often_as_asked():
    pairs = [(Word(4, 11, 1, 1), [f"w{number}" for number in range(10_000)])]
    config = settings("", variants=2000, replaced=0.4)
    found = replaced_variants(TEXT, pairs, config, [0])
    assert 0.36 < len(found) / 2000 < 0.44  # each replacement is another word


def test_draws_are_a_function_of_their_key():
    pairs = [(Word(4, 11, 1, 1), list("abcdefgh"))]
    config = settings("", variants=4)
    assert replaced_variants(TEXT, pairs, config, [0, 1]) == replaced_variants(TEXT, pairs, config, [0, 1])
    assert replaced_variants(TEXT, pairs, config, [0, 1]) != replaced_variants(TEXT, pairs, config, [0, 2])
    assert replaced_variants(TEXT, [], config, [0]) == []


def test_a_capital_is_kept():
    assert [cased("room", word) for word in ("Kitchen", "kitchen", "KITCHEN")] == ["Room", "room", "ROOM"]
    assert cased("everyone", "I") == "Everyone"


def test_joined_pieces_hold_every_example_and_no_variant_twice(tmp_path):
    config = AugmentConfig(file="none", model="none")
    examples = Examples(["a", "b", "c", "d"], [], ["0", "1", "0", "1"])
    begin_pieces(tmp_path, {"examples": "1"})
    write_piece(tmp_path, 0, [row(config, text, None, "0", 0) for text in ("x", "y", "c")])
    write_piece(tmp_path, 1, [row(config, text, None, "0", 2) for text in ("x", "z")])
    counts = join(tmp_path, config, examples, 2)
    rows = [json.loads(line) for line in (tmp_path / "augmented.jsonl").read_text().splitlines()]
    assert [(r["sentence"], r["origin"]) for r in rows] == [
        ("a", 0), ("x", 0), ("y", 0), ("b", 1), ("c", 2), ("z", 2), ("d", 3)
    ]  # fmt: skip
    assert counts == {"examples": 4, "variants": 3, "duplicates": 2}


@pytest.mark.parametrize("origins", [(1, 0), (0, 4), (-1, 0)])
def test_a_piece_of_other_examples_is_damaged(tmp_path, origins):
    config, examples = AugmentConfig(file="none", model="none"), Examples(["a", "b"], [], ["0", "1"])
    begin_pieces(tmp_path, {"examples": "1"})
    write_piece(tmp_path, 0, [row(config, "x", None, "0", origin) for origin in origins])
    with pytest.raises(ValueError, match=r"000000\.jsonl is damaged \(its examples are out of order\)"):
        join(tmp_path, config, examples, 1)


def test_a_file_without_a_variant_is_warned_of(tmp_path, capsys):
    config = settings("none", teacher="some")
    rows = [row(config, "a", None, "0", 0), row(config, "b\x1b", None, "1", 1)]
    (tmp_path / "augmented.jsonl").write_text("\n".join(rows))
    _show(tmp_path, config)
    advice = "give a --model that knows their words, or a lower --confidence"
    assert capsys.readouterr().err == f"warning: augment: no text got a variant; {advice}\n"
    (tmp_path / "augmented.jsonl").write_text("\n".join([*rows, row(config, "c", None, "1", 1)]))
    _show(tmp_path, config)
    assert capsys.readouterr().err == "  b\n  > c\n"


def test_labels_that_are_lists_are_read_and_written_with_the_separator(tmp_path):
    lines = [{"sentence": "one", "label": ["a", "b, c"]}, {"sentence": "two", "label": []}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = AugmentConfig(str(tmp_path / "a.jsonl"), "", separator="|")
    examples = read(config)
    assert examples == Examples(["one", "two"], [], ["a|b, c", ""])
    output = tmp_path / "augmented.jsonl"
    output.write_text("\n".join(original_rows(config, examples)))
    task = TaskConfig(str(output), str(output), kind="multi_label", separator="|")
    assert label_set(task) == ["a", "b, c"]


def test_pieces_of_another_text_or_model_are_refused(tmp_path):
    begin_pieces(tmp_path, {"examples": "1", "model": "2"})
    begin_pieces(tmp_path, {"examples": "1", "model": "2"})
    with pytest.raises(ValueError, match="begun with another text or model"):
        begin_pieces(tmp_path, {"examples": "1", "model": "3"})


def test_the_teacher_judges_texts_of_the_length_that_it_was_trained_with(tiny_tokenizer, tmp_path):
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(tiny_tokens()), **shape, initializer_range=0.5)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    copy_tokenizer(tiny_tokenizer, tmp_path, length=8)
    settings = AugmentConfig("", "", teacher=str(tmp_path), confidence=0.5)
    texts = [" ".join(["the"] * 6), " ".join(["the"] * 6 + ["was"] * 6)]
    judged = _Judge(settings, DEVICE)([row(settings, text, None, "a", 0) for text in texts])
    assert len({json.loads(line)[SURE] for line in judged}) == 1


# ---- noise

TAGGED = [Tagged(place, place + 1, "ab"[place // 2 % 2]) for place in range(0, 40, 2)]
LETTERS = " ".join("abcdefghijklmnopqrst")
BY_TAG = {"a": ["ONE"], "b": ["TWO"]}


def noise(config: NoiseConfig, tries: int = 400) -> list[list[str]]:
    return [text.split() for text in noisy_variants(LETTERS, TAGGED, BY_TAG, "[MASK]", config, tries, [3])]


def test_words_are_masked_and_replaced_as_often_as_asked():
    found = noise(NoiseConfig(masked=0.2, replaced=0.1, ngram=0, most=1.0))
    counts = Counter(word for words in found for word in words)
    total = 20 * len(found)
    assert 0.17 < counts["[MASK]"] / total < 0.23
    assert 0.08 < (counts["ONE"] + counts["TWO"]) / total < 0.13
    for words in found:
        assert {
            own: word for own, word in zip(LETTERS.split(), words, strict=True) if word == "ONE"
        }.keys() <= {*LETTERS.split()[::2]}


def test_no_more_words_change_than_may():
    for words in noise(NoiseConfig(masked=0.6, replaced=0.4, ngram=0, most=0.25)):
        assert sum(own != word for own, word in zip(LETTERS.split(), words, strict=True)) <= 5


def test_no_more_words_change_than_may_with_an_ngram_masked():
    """One that would change too many is left out, whole; shorter ones are not."""
    config = NoiseConfig(masked=0.2, replaced=0.1, ngram=1, longest=5, ngrams="mask", most=0.25)
    counts = [
        sum(own != word for own, word in zip(LETTERS.split(), words, strict=True))
        for words in noise(config)
    ]
    assert max(counts) == 5
    alone = noise(NoiseConfig(masked=0, replaced=0, ngram=1, longest=5, ngrams="mask", most=0.15))
    assert {words.count("[MASK]") for words in alone} == {1, 2, 3}


@pytest.mark.parametrize("kind", ["keep", "mask"])
def test_an_ngram_is_kept_or_masked(kind):
    found = noise(NoiseConfig(masked=0, replaced=0, ngram=1, longest=3, ngrams=kind))
    lengths = set()
    for words in found:
        place = words.index("[MASK]") if kind == "mask" else LETTERS.split().index(words[0])
        count = words.count("[MASK]") if kind == "mask" else len(words)
        own = LETTERS.split()
        ngram = own[place : place + count]
        assert words == (
            own[:place] + ["[MASK]"] * count + own[place + count :] if kind == "mask" else ngram
        )
        lengths.add(count)
    assert lengths == {1, 2, 3}


def test_an_ngram_of_a_short_text_lies_anywhere_in_it():
    config = NoiseConfig(masked=0, replaced=0, ngram=1, ngrams="keep")
    tagged = [Tagged(0, 1, ""), Tagged(2, 3, "")]
    assert {*noisy_variants("a b", tagged, {}, "[MASK]", config, 50, [0])} == {"a", "b"}


def test_noise_leaves_what_stands_between_words_and_around_them():
    tagged = [Tagged(1, 2, ""), Tagged(4, 5, ""), Tagged(6, 7, "")]
    for ngrams, expected in (
        ("keep", {"A", "b", "c", "A, b", "b-c"}),
        ("mask", {"(#, b-c)", "(A, #-c)", "(A, b-#)", "(#, #-c)", "(A, #-#)", "(#, #-#)"}),
    ):
        config = NoiseConfig(masked=0, replaced=0, ngram=1, longest=3, ngrams=ngrams, most=1.0)
        assert {*noisy_variants("(A, b-c)", tagged, {}, "#", config, 200, [0])} == expected
    assert words_by_tag(["(A, b-c)"], lambda text: tagged) == {"": ["a", "b", "c"]}


def test_no_noise_no_variants():
    assert noise(NoiseConfig(masked=0, replaced=0, ngram=0)) == []
    assert noisy_variants("", [], {}, "[MASK]", NoiseConfig(), 5, [0]) == []


@pytest.mark.parametrize("tag", [textblob_tags, jieba_tags])
def test_taggers_find_words_where_they_are(tag):
    text = "She didn't like the old garden , 但是今天天气很好。"
    found = tag(text)
    assert [text[word.begin : word.end] for word in found] != []
    assert all(before.end <= after.begin for before, after in pairwise(found))
    covered = "".join(text[word.begin : word.end] for word in found)
    assert covered == "".join(text.split())


def test_no_word_is_tagged_where_none_is_replaced():
    assert tagger(NoiseConfig(replaced=0), "word") is untagged_words
    assert tagger(NoiseConfig(), "word") is textblob_tags
    tagged = textblob_tags(TEXT)
    assert {word.tag for word in tagged} > {"NN", "JJ"}
    assert untagged_words(TEXT) == [word._replace(tag="") for word in tagged]


# spaCy in a few lines, with the names that are relied on: words and spaces, tagged by their length.
SPACY = """
import re

class Token(str):
    @property
    def tag_(self):
        return f"T{len(self)}"

    @property
    def is_space(self):
        return self.isspace()

def load(name, disable):
    assert name == "a_model" and set(disable) == {"parser", "ner", "lemmatizer"}
    def pipeline(text):
        for match in re.finditer(r"\\w+|\\s\\s+|[^\\w\\s]", text):
            token = Token(match[0])
            token.idx = match.start()
            yield token
    return pipeline
"""


def test_spacys_words_are_tagged_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.noise.SPACY_MODEL", "a_model")
    settings = NoiseConfig(tagger="spacy")
    with pytest.raises(ValueError, match="needs spacy and its model a_model; pip install it"):
        tagger(settings, "word")
    (tmp_path / "a_model.py").touch()
    (tmp_path / "spacy.py").write_text(SPACY)
    monkeypatch.syspath_prepend(tmp_path)
    with patch.dict(sys.modules):
        sys.modules.pop("spacy", None)
        found = tagger(settings, "word")("Old  soup .")
    assert found == [Tagged(0, 3, "T3"), Tagged(5, 9, "T4"), Tagged(10, 11, "T1")]


def test_words_of_a_kind_are_the_files():
    by_tag = words_by_tag(["The old garden", "a new kitchen"], textblob_tags)
    assert by_tag["JJ"] == ["new", "old"]
    assert {"garden", "kitchen"} <= {word for names in by_tag.values() for word in names}


# ---- candidates


def naive(config: AugmentConfig, text: str) -> list[tuple[str, set[str]]]:
    """One float64 forward pass for every word of one token, without any batch or padding."""
    vocabulary = load_vocabulary(config.model)
    model = AutoModelForMaskedLM.from_pretrained(config.model).double().eval()
    encoding = vocabulary.tokenizer.encode(text, add_special_tokens=False)
    between = [vocabulary.sep] * vocabulary.separators_between
    found = []
    for word in words_of(text, encoding, "word"):
        if word.first != word.last:
            continue
        masked = list(encoding.ids)
        masked[word.first] = vocabulary.mask
        ids = [vocabulary.cls, *masked, *between, *encoding.ids, vocabulary.sep][:48]
        segments = ([0] * (1 + len(masked) + len(between)) + [1] * 48)[: len(ids)]
        with torch.no_grad():
            logits = model(torch.tensor([ids]), token_type_ids=torch.tensor([segments])).logits[0]
        top = logits[1 + word.first].argsort(descending=True)[: config.candidates].tolist()
        names = {vocabulary.tokenizer.id_to_token(token) for token in top if token > 4}
        found.append((word.of(text), {name for name in names if not name.startswith("##")}))
    return found


TEXTS = [TEXT, "kitchen", "a garden", "The soup was cold and the waiter was rude . " * 3, "the ."]


def by_model(config: AugmentConfig) -> list[list[tuple[str, list[str]]]]:
    model = MaskedWords(config, DEVICE)
    found = masked_candidates(config, model, Neighbours(config, model), TEXTS)
    return [[(word.of(text), own) for word, own in pairs] for text, pairs in zip(TEXTS, found, strict=True)]


def test_candidates_are_those_of_one_pass_a_word(model):
    config = settings(model)
    known = whole_entries(load_vocabulary(model))
    for text, found in zip(TEXTS, by_model(config), strict=True):
        single = [(word, set(own)) for word, own in found if word.lower() in known]
        assert [(word, own or {word}) for word, own in naive(config, text)] == single


def test_no_batch_size_changes_a_candidate(model, monkeypatch):
    expected = by_model(settings(model))
    assert by_model(settings(model, batch_size=1)) == expected
    assert by_model(settings(model, batch_size=3)) == expected
    monkeypatch.setitem(candidates.TOKENS, "cpu", 40)
    monkeypatch.setattr(candidates, "GROUP", 1)
    assert by_model(settings(model)) == expected
    monkeypatch.setattr(candidates, "NEAR", 1e9)  # all decided in float64
    assert by_model(settings(model)) == expected


def test_what_is_near_is_decided_in_float64(model):
    contexts = [Context((2, 10, 4, 11, 3), 5, (2,)), Context((2, 4, 12, 3), 4, (1,))]
    masked, other = (MaskedWords(settings(model), DEVICE) for _ in range(2))
    for weight in other.model.parameters():
        weight.zero_()  # to which all tokens are alike
    expected, found = masked.best(contexts), other.best(contexts)
    assert {context: tokens.tolist() for context, tokens in found.items()} == {
        context: tokens.tolist() for context, tokens in expected.items()
    }


def test_special_tokens_are_no_words(model):
    masked = MaskedWords(settings(model), DEVICE)
    vocabulary = masked.vocabulary
    (word, number), *_ = whole_entries(vocabulary).items()
    tokens = [vocabulary.unk, vocabulary.sep, vocabulary.mask, vocabulary.pad, vocabulary.cls, number]
    assert masked.words(np.array([tokens]), "word") == [word]


def test_a_step_has_the_texts_asked_for_or_the_tokens_of_its_device(model, monkeypatch):
    masked = MaskedWords(settings(model), DEVICE)
    lengths = [3, 3, 4, 5, 9, 30]
    contexts = [Context(tuple(range(length)), 1, (1,)) for length in lengths]
    monkeypatch.setitem(candidates.TOKENS, "cpu", 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def sizes() -> list[list[int]]:
        return [[len(context.ids) for context in batch] for batch in masked._batches(contexts)]

    monkeypatch.setattr(candidates, "GROUP", 1)
    assert sizes() == [[3, 3, 4], [5], [9], [30]]  # padded, none has more than 12 unless it is alone
    monkeypatch.setattr(candidates, "GROUP", 2)
    assert sizes() == [[3, 3], [4, 5], [9], [30]]
    masked.batch_size = 4
    assert sizes() == [[3, 3, 4, 5], [9, 30]]
    assert not list(masked._batches([]))


def test_a_word_beyond_the_models_length_stays(model):
    text = "kitchen " * 60
    masked = MaskedWords(settings(model), DEVICE)
    (found,) = masked_candidates(settings(model), masked, Neighbours(settings(model), masked), [text])
    assert [own for _, own in found[47:]] == [["kitchen"]] * 13
    assert all(len(own) > 1 for _, own in found[:40])


class Counted(list):
    """A list that counts how many of its entries are gone through."""

    handled = 0

    def __iter__(self):
        Counted.handled += len(self)
        return super().__iter__()

    def __getitem__(self, place):
        found = super().__getitem__(place)
        Counted.handled += len(found) if isinstance(place, slice) else 1
        return Counted(found) if isinstance(place, slice) else found


class CountedTokenizer:
    """A tokenizer whose encodings count what is copied from them, as they do whenever they are asked."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)

    def encode_batch(self, texts: list[str], **options: bool) -> list["CountedEncoding"]:
        return [CountedEncoding(own) for own in self.tokenizer.encode_batch(texts, **options)]


class CountedEncoding:
    def __init__(self, encoding: Encoding):
        self.encoding = encoding

    def __getattr__(self, name: str):
        found = Counted(getattr(self.encoding, name))
        Counted.handled += len(found)
        return found


@pytest.mark.parametrize("word", ["kitchen", "abc"])
def test_the_work_grows_as_the_text_does(model, word):
    """Each token is handled a few times, and besides as many as the model reads for every word it reads."""
    config = settings(model)
    masked = MaskedWords(config, DEVICE)
    near = Neighbours(config, masked)
    masked.vocabulary = replace(masked.vocabulary, tokenizer=CountedTokenizer(masked.vocabulary.tokenizer))
    work = []
    for count in (100, 1000, 2000):
        Counted.handled = 0
        (found,) = masked_candidates(config, masked, near, [f"{word} " * count])
        assert len(found) == count
        work.append(Counted.handled)
    tokens_of_a_word = 3 if word == "abc" else 1
    assert work[2] - work[1] <= 10 * tokens_of_a_word * 1000
    assert work[1] - work[0] <= 10 * tokens_of_a_word * 900


@pytest.mark.skipif(not has_int8(DEVICE), reason="8-bit products need AVX-512 VNNI")
def test_in_8_bits_candidates_are_near_those_of_fp32_and_no_batch_changes_a_bit(model):
    """That bits stay is what makes candidates the same for any batch size."""
    plain, rounded = (MaskedWords(settings(model, precision=p), DEVICE) for p in ("fp32", "int8"))
    ids = [plain.vocabulary.tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    words = [(own, Word(0, 1, place, place)) for own in ids for place in range(len(own))]
    contexts = [context for own, word in words if (context := plain.context(own, word))]

    def logits(model: MaskedWords, some: list) -> torch.Tensor:
        batch, places = model._batch(some)
        with torch.no_grad(), reading(model.model, places):
            return model.model(**model_inputs(model.model, batch)).logits[0]

    assert len({len(context.ids) for context in contexts}) > 3  # some are padded
    together, exact = logits(rounded, contexts), logits(plain, contexts)
    for context, bits in zip(contexts, together, strict=True):
        assert torch.equal(logits(rounded, [context])[0], bits)
    assert not torch.equal(together, exact)
    assert (together - exact).norm() < 0.2 * exact.norm()
    for size in (1, 64):
        rounded.batch_size = size
        found = rounded.best(contexts)
        assert all(np.array_equal(found[c], rounded.best([c])[c]) for c in contexts)


def test_a_model_of_an_odd_length_is_given_no_more(model, tmp_path):
    """Texts are padded to an even width, as far as the model goes."""
    config = BertConfig.from_pretrained(model, max_position_embeddings=47)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    copy_tokenizer(model, tmp_path)
    masked = MaskedWords(settings(str(tmp_path)), DEVICE)
    (found,) = masked_candidates(settings(model), masked, None, ["kitchen " * 60])
    assert [len(own) > 1 for _, own in found] == [True] * 46 + [False] * 14


def test_words_of_one_token_or_of_few_characters_are_masked():
    assert is_maskable(Word(0, 9, 3, 3), "word")
    assert not is_maskable(Word(0, 9, 3, 4), "word")
    lengths = range(1, 7)
    maskable = [is_maskable(Word(2, 2 + length, 3, 2 + length), "chinese_word") for length in lengths]
    assert maskable == [length <= 4 for length in lengths]  # candidates of more are too many
    assert not is_maskable(Word(2, 4, 3, 3), "chinese_word")  # of one token


def test_chinese_candidates_are_joined_from_those_of_every_place(model):
    masked = MaskedWords(settings(model), DEVICE)
    characters = Tokenizer(models.WordLevel({"东": 0, "北": 1, "京": 2}, unk_token="京"))
    masked.vocabulary = Vocabulary(characters, 9, 9, 9, 9, 9, 3, "")
    assert masked.words(np.array([[0, 1], [2, 2]]), "chinese_word") == ["东京", "北京"]
    masked.top = 1
    assert masked.words(np.array([[0, 1], [2, 2]]), "chinese_word") == ["北京"]


def test_of_fewer_neighbours_than_asked_for_all_are_given(model, tmp_path):
    (tmp_path / "vectors.txt").write_text("soup 1 0\nstew 1 1\ncab 0 1\n")
    config = settings(model, vectors=str(tmp_path / "vectors.txt"))
    found = Neighbours(config, MaskedWords(config, DEVICE)).best(["soup", "cab"])
    assert found == {"soup": ["cab", "stew"], "cab": ["soup", "stew"]}


def test_neighbours_are_the_nearest_by_the_cosine(model, tmp_path):
    rng = np.random.default_rng(0)
    names = [f"word{number}" for number in range(50)]
    table = dict(zip(names, rng.normal(size=(50, 8)).astype(np.float32), strict=True))
    file = Path(tmp_path / "vectors.txt")
    file.write_text("".join(f"{name} {' '.join(map(str, row))}\n" for name, row in table.items()))
    config = settings(model, vectors=str(file))
    found = Neighbours(config, MaskedWords(config, DEVICE)).best(["word3", "word7", "unknown"])
    for word in ("word3", "word7"):
        cosine = {
            name: float(row @ table[word] / np.linalg.norm(row))
            for name, row in table.items()
            if name != word
        }
        assert found[word] == sorted(sorted(cosine, key=cosine.__getitem__)[-6:])
    assert "unknown" not in found


def test_without_a_file_the_models_own_embeddings_are_searched(model):
    config = settings(model)
    masked = MaskedWords(config, DEVICE)
    (found,) = Neighbours(config, masked).best(["zzz"]).values()
    assert len(found) == 6
    assert set(found) <= set(whole_entries(masked.vocabulary))


def test_the_models_own_embeddings_are_compared_by_what_tells_them_from_their_mean(model):
    config, masked = settings(model), MaskedWords(settings(model), DEVICE)
    masked.model.get_input_embeddings().weight.add_(1.0)  # which all have in common
    table = masked.model.get_input_embeddings().weight.double().numpy()
    table = table - table.mean(axis=0)
    entries = whole_entries(masked.vocabulary)
    word = next(iter(entries))
    cosine = {
        name: table[number] @ table[entries[word]] / np.linalg.norm(table[number])
        for name, number in entries.items()
        if name != word
    }
    expected = sorted(sorted(cosine, key=cosine.__getitem__)[-6:])
    assert Neighbours(config, masked).best([word]) == {word: expected}


def test_a_model_without_its_head_is_refused(tiny_model):
    with pytest.raises(ValueError, match="lacks weights of its head"):
        MaskedWords(settings(tiny_model), DEVICE)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> str:
    """A tiny RoBERTa with a byte-level tokenizer and room for 40 tokens."""
    folder = tmp_path_factory.mktemp("roberta")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [f"the {word} was là – and the {word} ; " * 4 for word in tiny_tokens()[5:60]]
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    size = tokenizer.get_vocab_size()
    config = RobertaConfig(
        vocab_size=size, max_position_embeddings=42, pad_token_id=1, initializer_range=0.5, **shape
    )
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return str(folder)


def test_byte_level_vocabularies_give_whole_words(roberta):
    config = AugmentConfig(file="none", model=roberta, candidates=60)
    masked = MaskedWords(config, DEVICE)
    texts = ["the kitchen was lovely", "kitchen " * 30]
    for text, found in zip(
        texts, masked_candidates(config, masked, Neighbours(config, masked), texts), strict=True
    ):
        assert [word.of(text) for word, _ in found] == [w for w in text.split() if w not in ("the", "was")]
        for _, own in found:
            assert not set("ĠÃâ\ufffd") & set("".join(own))
            assert not set(own) & {"<s>", "<pad>", "</s>", "<mask>"}
    assert {"là", "kitchen"} <= set(whole_entries(masked.vocabulary))


def test_a_vocabulary_with_a_letter_that_others_begin_words_with_gives_its_words():
    entries = {"[UNK]": 0, "\u0120": 1, "soup": 2, "##s": 3}
    vocabulary = Vocabulary(Tokenizer(models.WordPiece(entries)), 0, 0, 0, 0, 0, 4, "")
    assert whole_entries(vocabulary) == {"\u0120": 1, "soup": 2}


def test_of_chinese_words_the_most_frequent_are_taken():
    assert chinese_words([["东", "北"], ["京"]], 2) == ["东京", "北京"]
    assert chinese_words([["东", "北"], ["京"]], 1) == ["北京"]


def test_chinese_candidates_are_words_that_jieba_knows():
    found = chinese_words([["今", "昨", "x"], ["天", "y"]], 5)
    assert found == sorted(["今天", "昨天"])
    assert chinese_words([["x"], ["y"]], 5) == []
