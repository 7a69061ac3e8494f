"""Dynamic masking, and a vocabulary's head on masked places alone."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from torch.nn import functional
from transformers import AutoConfig, AutoModelForMaskedLM

from data_pipeline.masking import DynamicMasking, continuing
from data_pipeline.settings import MaskingConfig
from data_pipeline.vocabulary import Vocabulary, load_vocabulary
from distill.encoders import Batch, model_inputs, run_encoder
from distill.objective import Objective, count
from distill.settings import ObjectiveConfig

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def vocabulary(tiny_tokenizer):
    return load_vocabulary(tiny_tokenizer)


def ids_of(vocabulary, text: str) -> np.ndarray:
    return np.array(vocabulary.tokenizer.encode(text).ids)


TEXT = "the kitchen was abc and the garden was defgh " * 3


def test_masks_are_a_function_of_seed_step_and_tokens(vocabulary):
    masking, ids = DynamicMasking(MaskingConfig(0.3), vocabulary, 0), ids_of(vocabulary, TEXT)
    masked, places = masking(ids, 7)
    again = DynamicMasking(MaskingConfig(0.3), vocabulary, 0)(ids.copy(), 7)
    assert (again[0] == masked).all()
    assert (again[1] == places).all()
    assert (masking(ids, 8)[0] != masked).any()
    assert (DynamicMasking(MaskingConfig(0.3), vocabulary, 1)(ids, 7)[0] != masked).any()
    untouched = np.setdiff1d(np.arange(len(ids)), places)
    assert (masked[untouched] == ids[untouched]).all()


def test_whole_words_are_masked_whole(vocabulary):
    masking, ids = DynamicMasking(MaskingConfig(0.3, unit="word"), vocabulary, 0), ids_of(vocabulary, TEXT)
    starts = [i for i, token in enumerate(ids) if token not in set(continuing(vocabulary))]
    seen = set()
    for step in range(50):
        chosen = set(masking(ids, step)[1].tolist())
        for begin, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            inside = chosen & set(range(begin, end))
            assert len(inside) in (0, end - begin)
            seen.add(len(inside))
    assert {1, 3, 5} <= seen


def test_tokens_of_one_word_are_masked_apart_where_words_are_not_the_unit(vocabulary):
    ids = ids_of(vocabulary, "the garden was abcdefgh")
    chosen = [DynamicMasking(MaskingConfig(0.2), vocabulary, 0)(ids, step)[1] for step in range(20)]
    assert {len(places) for places in chosen} == {round(len(ids) * 0.2)}


def test_rows_of_one_step_are_masked_each_in_its_own_places(vocabulary):
    masking = DynamicMasking(MaskingConfig(0.15, most=1000), vocabulary, 0)
    rows = [np.arange(5, 60) + shift for shift in range(5)]
    assert len({tuple(masking(row, 3)[1]) for row in rows}) == 5


@pytest.mark.parametrize(
    ("count", "one", "chosen"),
    [
        (2, False, {()}),
        (3, False, {("abc",)}),
        (4, False, {("abc",), ("defg",)}),
        (7, False, {("abc", "defg")}),
        (2, True, {("abc",), ("defg",), ("hijklmno",)}),
        (4, True, {("abc",), ("defg",), ("hijklmno",)}),
        (7, True, {("abc", "defg"), ("hijklmno",)}),
    ],
)
def test_words_that_would_exceed_the_number_are_passed_over(vocabulary, count, one, chosen):
    """Unless one is wanted; the first word here was cut at the row's edge."""
    row = "[CLS] ##a ##b ##c d ##e ##f ##g [SEP] h ##i ##j ##k ##l ##m ##n ##o [SEP]"
    ids = np.array([vocabulary.tokenizer.token_to_id(token) for token in row.split()])
    words = {"abc": {1, 2, 3}, "defg": {4, 5, 6, 7}, "hijklmno": {*range(9, 17)}}
    masking = DynamicMasking(MaskingConfig(count / len(ids), 100, one, "word"), vocabulary, 0)
    seen = set()
    for step in range(40):
        places = {*masking(ids, step)[1].tolist()}
        whole = tuple(word for word, own in words.items() if own <= places)
        assert sum(map(len, whole)) == len(places)
        seen.add(whole)
    assert seen == chosen


def test_tokens_that_go_on_with_a_word_are_told_by_the_vocabularys_marks(vocabulary):
    names = [vocabulary.tokenizer.id_to_token(token) for token in continuing(vocabulary)]
    assert sorted(names) == sorted(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    entries = {"\u0120the": 0, "re": 1, ".": 2, "\u0120on": 3, "#": 4, "##": 5}
    spaced = Tokenizer(models.BPE(entries, [("#", "#")]))
    assert continuing(Vocabulary(spaced, 2, 2, 2, 2, 2, 6, "")) == [1]
    words = Tokenizer(models.WordLevel({"the": 0, "soup": 1, "?": 2}, unk_token="?"))
    assert continuing(Vocabulary(words, 2, 2, 2, 2, 2, 3, "")) == []


def a_batch(length: int = 9) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (3, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return Batch(ids.where(mask > 0, 1), mask, torch.zeros_like(ids))


def a_model():
    config = AutoConfig.for_model("bert", vocab_size=60, pad_token_id=1, **SHAPE)
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_config(config).eval()


def test_the_term_is_the_mean_cross_entropy_of_masked_tokens():
    model, batch = a_model(), a_batch()
    batch.masked, batch.labels = torch.tensor([2, 10, 19]), torch.tensor([7, 8, 9])
    objective = Objective(model, ObjectiveConfig(mlm=1.0), [], 0)
    counts = count(batch, "valid")
    assert counts.tolist()[3] == 3
    with torch.no_grad():
        terms = objective(batch, run_encoder(model, objective.collector, batch), counts)
        targets = torch.full((27,), -100)
        targets[batch.masked] = batch.labels
        logits = model(**model_inputs(model, batch)).logits.flatten(0, 1)
        expected = functional.cross_entropy(logits, targets)
    assert terms["mlm"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_step_without_a_masked_token_has_no_loss():
    model, batch = a_model(), a_batch()
    batch.masked, batch.labels = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    objective = Objective(model, ObjectiveConfig(mlm=1.0), [], 0)
    terms = objective(batch, run_encoder(model, objective.collector, batch), count(batch, "valid"))
    terms["loss"].backward()
    assert terms["mlm"].item() == 0
