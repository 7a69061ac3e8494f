"""NEZHA against its formula, written out for single positions; weights under both published names."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from distill.attention import collecting, install
from distill.encoders import whole_model
from distill.nezha import NezhaConfig, NezhaSelfAttention, relative_positions


def config() -> NezhaConfig:
    return NezhaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_relative_position=3,
        attention_probs_dropout_prob=0.0,
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config()).eval()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    return torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1)), mask


def vector(distance: int, width: int, largest: int) -> list[float]:
    """The sinusoid of one clipped distance."""
    place = max(-largest, min(largest, distance)) + largest
    angles = [place / 10000 ** (2 * (i // 2) / width) for i in range(width)]
    return [math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angles)]


def test_relative_positions_are_sinusoids_of_the_clipped_distance():
    table = relative_positions(9, 8, 3, torch.device("cpu"), torch.float32)
    for i, j in ((0, 0), (0, 8), (8, 0), (4, 5), (5, 3)):
        torch.testing.assert_close(table[i, j], torch.tensor(vector(j - i, 8, 3)))


@torch.no_grad()
def test_attention_is_the_papers_formula():
    torch.manual_seed(0)
    attention = NezhaSelfAttention(config()).eval()
    x, length, width = torch.randn(1, 6, 16), 6, 8
    got, _ = attention(x)
    for head in range(2):
        part = slice(head * width, (head + 1) * width)
        q, k, v = (f(x)[0, :, part] for f in (attention.query, attention.key, attention.value))
        for i in range(length):
            r = torch.tensor([vector(j - i, width, 3) for j in range(length)])
            p = torch.stack([q[i] @ (k[j] + r[j]) / math.sqrt(width) for j in range(length)]).softmax(0)
            expected = sum(p[j] * (v[j] + r[j]) for j in range(length))
            torch.testing.assert_close(got[0, i, part], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa", "distillery"])
def test_padding_changes_nothing_whatever_kind_of_mask_it_gets(model, batch, attention):
    ids, mask = batch
    install(model) if attention == "distillery" else model.set_attn_implementation(attention)
    alone = model(ids[1:, :5], mask[1:, :5]).logits
    torch.testing.assert_close(model(ids, mask).logits[1:], alone)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["bert.", "nezha."])
@pytest.mark.parametrize("head", [AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_weights_load_under_both_published_names(head, batch, tmp_path, prefix):
    model = head.from_config(config()).eval()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("bert.", prefix, 1): weight for name, weight in saved.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = whole_model(head, str(tmp_path), "teacher").eval()
    torch.testing.assert_close(again(*batch).logits, model(*batch).logits)


@torch.no_grad()
def test_its_layers_can_be_distilled(model, batch):
    collector = install(model)
    with collecting(collector, [2]) as layers:
        model(*batch)
    assert layers[2].query.shape == (2, 2, 9, 8)
