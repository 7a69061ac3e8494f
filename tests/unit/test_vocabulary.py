"""A vocabulary is known by its special tokens and a fingerprint, whatever files it comes from."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import RobertaProcessing

from data_pipeline import wordpiece
from data_pipeline.settings import CorpusConfig, VocabularyConfig
from data_pipeline.vocabulary import copy_tokenizer, load_vocabulary
from tests.helpers import tiny_tokens, tree


@pytest.fixture
def folder(tiny_tokenizer, tmp_path) -> Path:
    """A copy of the tiny tokenizer to change."""
    return Path(shutil.copytree(tiny_tokenizer, tmp_path / "copy"))


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")


def write_vocab_txt(folder: Path, tokens: list[str]) -> str:
    """A BERT folder from before tokenizer.json."""
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    return str(folder)


def roberta_tokenizer(folder: Path, names: tuple[str, ...]) -> str:
    """A folder with tokenizer.json alone, its special tokens named by nobody."""
    words = {name: number for number, name in enumerate([*names, "one", "two"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token=names[4]))
    tokenizer.post_processor = RobertaProcessing((names[1], 1), (names[0], 0))
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.mark.parametrize(
    ("least", "lower_case", "tokens"),
    [
        (1, True, ["the", "cat", "purred"]),
        (2, True, ["the", "cat", "p", "##u", "##r", "##r", "##e", "##d"]),
        (1, False, ["The", "cat", "purred"]),
    ],
)
def test_a_vocabulary_is_made_as_its_settings_say(tmp_path, least, lower_case, tokens):
    (tmp_path / "corpus.txt").write_text("The cat sat\n\nthe cat\n\nThe purred\n", encoding="utf-8")
    corpus = CorpusConfig([str(tmp_path / "corpus.txt")])
    wordpiece.run(VocabularyConfig(corpus, least=least, lower_case=lower_case), tmp_path)
    tokenizer = load_vocabulary(str(tmp_path / "model")).tokenizer
    assert tokenizer.encode("The cat purred", add_special_tokens=False).tokens == tokens
    described = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert described["do_lower_case"] == lower_case


def test_special_tokens_have_the_ids_of_the_vocabulary(tiny_tokenizer):
    vocabulary = load_vocabulary(tiny_tokenizer)
    ids = vocabulary.pad, vocabulary.unk, vocabulary.cls, vocabulary.sep, vocabulary.mask
    assert ids == (0, 1, 2, 3, 4)
    assert vocabulary.size == len(tiny_tokens())


def test_text_becomes_the_words_numbers(tiny_tokenizer):
    tokens = tiny_tokens()
    tokenizer = load_vocabulary(tiny_tokenizer).tokenizer
    encoded = tokenizer.encode("the plot was dull", add_special_tokens=False)
    assert encoded.ids == [tokens.index(word) for word in ("the", "plot", "was", "dull")]


def test_bert_puts_one_separator_between_segments(tiny_tokenizer):
    assert load_vocabulary(tiny_tokenizer).separators_between == 1


def test_roberta_puts_two_separators_between_segments(tmp_path):
    vocabulary = load_vocabulary(roberta_tokenizer(tmp_path, ("<s>", "</s>", "<pad>", "<mask>", "<unk>")))
    assert vocabulary.separators_between == 2


@pytest.mark.parametrize(
    "names",
    [("<s>", "</s>", "<pad>", "<mask>", "<unk>"), ("[CLS]", "[SEP]", "<pad>", "[MASK]", "<unk>")],
    ids=["roberta", "albert"],
)
def test_usual_special_tokens_are_known_where_no_file_names_them(tmp_path, names):
    vocabulary = load_vocabulary(roberta_tokenizer(tmp_path, names))
    ids = vocabulary.cls, vocabulary.sep, vocabulary.pad, vocabulary.mask, vocabulary.unk
    assert ids == (0, 1, 2, 3, 4)


def test_begin_and_end_tokens_stand_for_cls_and_sep(tmp_path):
    names = ("<begin>", "<end>", "<pad>", "<mask>", "<unk>")
    config = {"bos_token": "<begin>", "eos_token": {"content": "<end>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    vocabulary = load_vocabulary(roberta_tokenizer(tmp_path, names))
    assert (vocabulary.cls, vocabulary.sep) == (0, 1)


def test_special_tokens_named_as_objects_are_known(folder):
    change(folder / "tokenizer_config.json", '"[MASK]"', '{"content": "plot"}')
    assert load_vocabulary(str(folder)).mask == tiny_tokens().index("plot")


def test_a_folder_that_truncates_and_pads_is_loaded_without(tiny_tokenizer, tmp_path):
    tokenizer = Tokenizer.from_file(f"{tiny_tokenizer}/tokenizer.json")
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoded = load_vocabulary(str(tmp_path)).tokenizer.encode("the plot was dull")
    assert len(encoded.ids) == 6


# --- fingerprint -----------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_content_not_the_folder(tiny_tokenizer, folder):
    assert load_vocabulary(str(folder)).fingerprint == load_vocabulary(tiny_tokenizer).fingerprint


def test_vocab_txt_alone_has_the_fingerprint_of_the_same_tokens(tiny_tokenizer, tmp_path):
    older = load_vocabulary(write_vocab_txt(tmp_path, tiny_tokens()))
    assert older.fingerprint == load_vocabulary(tiny_tokenizer).fingerprint


def test_two_tokens_exchanged_change_the_fingerprint(tiny_tokenizer, tmp_path):
    tokens = tiny_tokens()
    tokens[10], tokens[11] = tokens[11], tokens[10]
    other = load_vocabulary(write_vocab_txt(tmp_path, tokens))
    assert other.size == load_vocabulary(tiny_tokenizer).size
    assert other.fingerprint != load_vocabulary(tiny_tokenizer).fingerprint


def test_another_special_token_changes_the_fingerprint(tiny_tokenizer, folder):
    change(folder / "tokenizer_config.json", '"mask_token": "[MASK]"', '"mask_token": "[UNK]"')
    assert load_vocabulary(str(folder)).fingerprint != load_vocabulary(tiny_tokenizer).fingerprint


# --- what is wrong ---------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none: no such folder; give a model folder"):
        load_vocabulary(str(tmp_path / "none"))


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ValueError, match=r"package:no_such_thing/model: not installed; .*no-such-thing"):
        load_vocabulary("package:no_such_thing/model")


def test_a_name_on_the_hub_that_can_not_be_fetched_is_named():
    with pytest.raises(ValueError, match=r"nobody/nothing: no such folder, and the hub did not give it"):
        load_vocabulary("nobody/nothing")


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer\.json or vocabulary file there; give a model"):
        load_vocabulary(str(tmp_path))


def test_files_that_describe_a_tokenizer_are_no_vocabulary(tiny_tokenizer, tmp_path):
    write_vocab_txt(tmp_path, [])
    (tmp_path / "vocab.txt").unlink()
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"no tokenizer\.json or vocabulary file there; give a model"):
        load_vocabulary(str(tmp_path))


def test_a_byte_pair_vocabulary_without_its_merges_is_refused(tmp_path):
    names = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5, "b": 6, "ab": 7}
    (tmp_path / "vocab.json").write_text(json.dumps(names))
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(ValueError, match=r"vocab\.json is there without merges\.txt; copy that beside it"):
        load_vocabulary(str(tmp_path))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    assert load_vocabulary(str(tmp_path)).tokenizer.encode("ab", add_special_tokens=False).ids == [7]


def test_a_vocabulary_of_special_tokens_alone_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the vocabulary holds special tokens alone; save the tokenizer"):
        load_vocabulary(write_vocab_txt(tmp_path, tiny_tokens()[:5]))


def test_a_vocabulary_that_needs_another_library_says_which(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}', encoding="utf-8")
    (tmp_path / "spm.model").write_bytes(b"\x00")
    monkeypatch.setattr("data_pipeline.vocabulary.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="its vocabulary can't be read: run pip install sentencepiece"):
        load_vocabulary(str(tmp_path))
    monkeypatch.setattr("data_pipeline.vocabulary.find_spec", lambda name: name)
    with pytest.raises(ValueError, match=r"no tokenizer\.json there, and .* can't be read: (?!run pip)"):
        load_vocabulary(str(tmp_path))


def test_a_damaged_tokenizer_is_named(folder):
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json can't be read"):
        load_vocabulary(str(folder))


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_damaged_tokenizer_config_is_named(folder, text):
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is damaged; save the tokenizer again"):
        load_vocabulary(str(folder))


@pytest.mark.parametrize("key", ["cls_token", "sep_token", "pad_token", "mask_token", "unk_token"])
def test_a_tokenizer_without_a_special_token_is_refused(tmp_path, key):
    order = ["cls_token", "sep_token", "pad_token", "mask_token", "unk_token"]
    names = ["<s>", "</s>", "<pad>", "<mask>", "<unk>"]
    names[order.index(key)] = "other"
    with pytest.raises(ValueError, match=rf"the tokenizer has no {key}; an encoder's tokenizer is needed"):
        load_vocabulary(roberta_tokenizer(tmp_path, tuple(names)))


# --- copies ----------------------------------------------------------------------------------


def test_a_copied_tokenizer_is_the_same(tiny_tokenizer, tmp_path):
    copy_tokenizer(tiny_tokenizer, tmp_path)
    assert tree(tmp_path) == tree(Path(tiny_tokenizer))


def test_a_copy_of_an_older_folder_has_a_tokenizer_json(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    write_vocab_txt(source, tiny_tokens())
    (source / "spm.model").write_bytes(b"")
    copy_tokenizer(str(source), target)
    assert sorted(tree(target)) == ["spm.model", "tokenizer.json", "vocab.txt"]
    (target / "vocab.txt").unlink()
    assert load_vocabulary(str(target)).fingerprint == load_vocabulary(str(source)).fingerprint


def test_only_the_tokenizers_files_are_copied(tiny_model, tmp_path):
    copy_tokenizer(tiny_model, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    assert not (tmp_path / "config.json").exists()
