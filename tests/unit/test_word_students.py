"""Students of words: padding and neighbours change nothing, folders reload, formulas are the papers'."""

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import AutoModelForSequenceClassification

from data_pipeline.settings import WordsConfig
from data_pipeline.tasks import Encoded
from data_pipeline.words import build_tokenizer
from distill.encoders import build_classifier, read_config, set_labels
from distill.measure import flops
from distill.word_students import (
    ENCODERS,
    PaddedLstm,
    WordModelConfig,
    WordModelForSequenceClassification,
    dynamic_attention,
)

KINDS = list(ENCODERS)


def student(kind: str, pair: bool = False, **settings) -> WordModelForSequenceClassification:
    """A small vocabulary, random weights, eval mode, double precision."""
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "embedding_size": 8, **settings}
    config = WordModelConfig(kind=kind, pair=pair, **shape)
    set_labels(config, ["a", "b", "c"], "classification")
    return WordModelForSequenceClassification(config).eval().double()


def padded(sequences: list[list[int]], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids, mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 7])
@torch.no_grad()
def test_padding_and_neighbours_change_nothing(kind, length):
    model, long = student(kind), [9, 8, 7, 6, 5, 9, 8, 7, 6, 5, 11, 12]
    own = list(range(10, 10 + length))
    alone = model(*padded([own], length)).logits[0]
    ids, mask = padded([long, own], 20)
    ids[1, length:] = 33  # what stands under the mask is nobody's business
    torch.testing.assert_close(model(ids, mask).logits[1], alone)


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"mean_bilstm"}))
@torch.no_grad()
def test_the_order_of_words_counts(kind):
    model = student(kind)
    one, other = (model(*padded([ids], 4)).logits for ids in ([5, 6, 7, 8], [8, 6, 5, 7]))
    assert (one - other).abs().max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_pair_is_two_texts_wherever_its_border_lies(kind):
    model = student(kind, pair=True)
    ids, mask = padded([[5, 6, 3, 7, 8, 9]], 9)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])  # as little matters under the mask as ids do
    got = model(ids, mask, segments).logits
    u = model.encoder.encode(model.embeddings(ids[:, :2]), mask[:, :2])
    v = model.encoder.encode(model.embeddings(ids[:, 3:6]), mask[:, 3:6])
    joined = torch.cat([u, v, (u - v).abs(), u * v], dim=-1)
    torch.testing.assert_close(got, model.classifier(model.encoder.head(joined)))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_two_texts_alike_have_the_same_features(kind):
    tokenizer = build_tokenizer(["the soup was bland"], WordsConfig(least=1))
    encoded = tokenizer.encode("the soup was bland", "the soup was bland")
    ids, mask = padded([encoded.ids], 11)
    segments, _ = padded([encoded.type_ids], 11)
    model = student(kind, pair=True)
    model._classify = lambda features: features
    u, v, difference, _ = model(ids, mask, segments).logits.chunk(4, dim=-1)
    assert torch.equal(u, v)
    assert u.any()
    assert not difference.any()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_pair_whose_first_text_has_no_words_takes_none_of_the_second(kind):
    model = student(kind, pair=True)
    ids, mask = padded([[7, 8, 9]], 5)
    u = model.encoder.encode(model.embeddings(torch.zeros_like(ids[:, :1])), mask[:, :1])
    v = model.encoder.encode(model.embeddings(ids[:, :3]), mask[:, :3])
    joined = torch.cat([u, v, (u - v).abs(), u * v], dim=-1)
    torch.testing.assert_close(model(ids, mask, mask).logits, model.classifier(model.encoder.head(joined)))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_text_without_words_has_an_answer(kind):
    logits = student(kind)(*padded([[], [5, 6]], 2)).logits
    assert logits.isfinite().all()


def test_the_vector_of_padding_is_zero_and_stays_so():
    model = student("bilstm")
    model(*padded([[], [5, 6]], 2)).logits.sum().backward()
    assert not model.embeddings.weight[0].any()
    assert not model.embeddings.weight.grad[0].any()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_no_place_at_all_is_a_text_without_words(kind):
    model = student(kind)
    nothing = torch.zeros(2, 0)  # as tokenizers give it, of floats
    torch.testing.assert_close(model(nothing, nothing).logits, model(*padded([[], []], 1)).logits)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_folder_reloads_and_predicts_the_same(kind, tmp_path):
    model = student(kind, frozen=True).float()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    batch = padded([[5, 6, 7], [8]], 3)
    torch.testing.assert_close(again(*batch).logits, model(*batch).logits, rtol=0, atol=0)
    assert again.config.id2label == {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_that_trains_gets_a_gradient(kind):
    model = student(kind)
    model(*padded([[5, 6, 7, 8, 9], [8, 5]], 5)).logits.square().sum().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert without == []


def test_a_padded_lstm_is_torchs_over_packed_rows():
    torch.manual_seed(0)
    ours, packed = PaddedLstm(6, 5), torch.nn.LSTM(6, 5, batch_first=True, bidirectional=True)
    weights = ours.onward.state_dict()
    packed.load_state_dict(
        weights | {f"{name}_reverse": part for name, part in ours.back.state_dict().items()}
    )
    lengths = torch.tensor([3, 9, 1, 6])
    mask = (torch.arange(9) < lengths[:, None]).long()
    x = torch.randn(4, 9, 6)
    theirs, (last, _) = packed(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    theirs = pad_packed_sequence(theirs, batch_first=True)[0]
    outputs, ends = ours(x, mask)
    torch.testing.assert_close(outputs * mask[..., None], theirs)
    torch.testing.assert_close(ends, torch.cat([last[0], last[1]], dim=-1))
    weight = torch.randn(4, 9, 10)
    ((outputs * weight * mask[..., None]).sum() + ends.square().sum()).backward()
    ((theirs * weight).sum() + last.square().sum()).backward()
    for way, suffix in ((ours.onward, ""), (ours.back, "_reverse")):
        for name, parameter in way.named_parameters():
            torch.testing.assert_close(parameter.grad, getattr(packed, name + suffix).grad)


@pytest.mark.parametrize("rounds", [2, 3])
def test_dynamic_attention_is_routing_by_agreement(rounds):
    """Its weights take no gradient."""
    torch.manual_seed(0)
    x, lengths = (torch.randn(2, 3, 5, 4).double() - 0.5).requires_grad_(), [5, 3]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    got, total = dynamic_attention(x, mask, rounds), torch.zeros(())
    for row, length in enumerate(lengths):
        for head in range(3):
            real, q = x[row, head, :length], torch.zeros(length).double()
            for _ in range(rounds):
                z = torch.tanh((q.softmax(0).detach()[:, None] * real).sum(0))
                q = q + real @ z
            torch.testing.assert_close(got[row, head], z)
            total = total + z.sum()
    gradients = [torch.autograd.grad(value, x)[0] for value in (got.sum(), total)]
    torch.testing.assert_close(*gradients)


def test_padding_scores_below_zero_take_no_attention():
    """The original multiplies them by a large negative number, which makes negative ones win."""
    x = torch.full((1, 1, 2, 3), -1.0)
    x[0, 0, 0] = 1.0
    got = dynamic_attention(x, torch.tensor([[1, 0]]), 2)
    torch.testing.assert_close(got, torch.tanh(torch.ones(1, 1, 3)))


def test_shapes_are_the_published_ones():
    def shapes(kind: str) -> dict[str, tuple[int, ...]]:
        config = WordModelConfig(kind=kind, vocab_size=10, embedding_size=300)
        return {
            name: tuple(weight.shape)
            for name, weight in WordModelForSequenceClassification(config).named_parameters()
        }

    bilstm, cnn, dense, dsa = (shapes(k) for k in ("bilstm", "cnn", "densenet_cnn", "densenet_dsa"))
    for way in ("onward", "back"):
        assert bilstm[f"encoder.lstm.{way}.weight_hh_l0"] == (1200, 300)
    assert bilstm["encoder.dense.weight"] == (400, 600)
    kernels = [cnn[f"encoder.convolutions.convolutions.{i}.weight"] for i in range(5)]
    assert kernels == [(256, 300, width) for width in (2, 3, 4, 5, 6)]
    column = [dense[f"encoder.block.columns.1.{i}.weight"] for i in range(5)]
    assert column == [(200, 300, 1), (100, 200, 3), (100, 300, 5), (100, 400, 7), (100, 500, 9)]
    assert dense["encoder.block.last.weight"] == (400, 500, 1)
    assert dense["classifier.weight"] == (2, 768)
    assert dsa["encoder.heads.weight"] == (2400, 400)
    assert dense["encoder.before.0.norm.weight"] == dsa["encoder.before.0.norm.weight"] == (400,)


@pytest.mark.parametrize(
    ("kind", "rates"), [("cnn", [0.2] * 3), ("densenet_cnn", [0.3] * 3), ("densenet_dsa", [0.3] * 4)]
)
def test_word_vectors_and_every_later_part_take_dropout(kind, rates):
    model = student(kind).train()
    assert [part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)] == rates
    read: list[torch.Tensor] = []
    first = (
        model.encoder.convolutions.convolutions[0] if kind == "cnn" else model.encoder.block.columns[0][0]
    )
    first.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    for _ in range(2):
        model(torch.tensor([[5, 6, 7]]))
    assert not torch.equal(*read)


def test_flops_of_a_bilstm_are_its_products():
    model = student("bilstm").float()
    words = 6
    data = Encoded([np.arange(5, 5 + words)], [np.zeros(words, int)], np.zeros(1, int), 0)
    per_word = 2 * 2 * 4 * 300 * (8 + 300)  # directions, multiply and add, gates, hidden, inputs
    heads = 2 * (600 * 400 + 400 * 3)
    assert flops(model, data) == words * per_word + heads


def test_frozen_vectors_stay_frozen_when_a_folder_trains_on(tmp_path):
    student("bilstm", frozen=True).save_pretrained(tmp_path)
    model = build_classifier(str(tmp_path), read_config(str(tmp_path)), ["a", "b", "c"])
    assert not model.embeddings.weight.requires_grad
    assert model.encoder.dense.weight.requires_grad
