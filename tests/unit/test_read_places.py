"""An encoder's end at the places that are read: what it says there, its gradient, and what it costs."""

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from distill.accounting import model_cost
from distill.attention import install
from distill.encoders import Batch, model_inputs, run_encoder
from distill.read_places import reading

SAVED = ("bert", "roberta", "electra", "xlm-roberta", "camembert")  # what follows the last attention
FAMILIES = (*SAVED, "albert", "deberta-v2", "modernbert", "nezha")
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PLACES = torch.tensor([1, 4, 9, 20])


def a_batch() -> Batch:
    """Of 3 sequences of 9 tokens; the second's last three are padding."""
    ids = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return Batch(ids.where(mask > 0, 1), mask, torch.zeros_like(ids))


def a_model(family: str, head: type):
    torch.manual_seed(0)
    return head.from_config(AutoConfig.for_model(family, vocab_size=60, pad_token_id=1, **SHAPE)).eval()


def logits(model, batch: Batch) -> torch.Tensor:
    return model(**model_inputs(model, batch)).logits


def gradients(model, values: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    values.square().sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_on_some_places_gives_what_it_gives_on_all(family):
    model, batch = a_model(family, AutoModelForMaskedLM), a_batch()
    expected = logits(model, batch).flatten(0, 1)[PLACES]
    of_all = gradients(model, expected)
    with reading(model, PLACES):
        found = logits(model, batch)[0]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(model, found), of_all)
    assert logits(model, batch).shape == (3, 9, 60)  # the hook has gone


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_says_and_learns_the_same(family):
    model, batch = a_model(family, AutoModelForSequenceClassification), a_batch()
    expected = logits(model, batch)
    of_all = gradients(model, expected)
    with reading(model, None):
        found = logits(model, batch)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(model, found), of_all)


@pytest.mark.parametrize("family", SAVED)
def test_the_last_feed_forward_sees_one_token_of_a_sequence(family):
    model, seen = a_model(family, AutoModelForSequenceClassification), []
    last = model.base_model.encoder.layer[-1].intermediate
    last.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:2]))
    with reading(model, None):
        logits(model, a_batch())
    assert seen == [(3, 1)]


def test_hidden_states_of_all_tokens_are_there_where_they_are_wanted():
    model, batch = a_model("bert", AutoModelForSequenceClassification), a_batch()
    collector = install(model)
    assert run_encoder(model, collector, batch, hidden=[2]).hidden[2].shape == (3, 9, 16)
    heads = run_encoder(model, collector, batch, attention=[2]).attention[2]
    assert heads.query.shape == (3, 2, 9, 8)
    model = a_model("bert", AutoModelForMaskedLM)
    batch.masked = PLACES
    signal = run_encoder(model, install(model), batch, hidden=[2])
    assert signal.hidden[2].shape == (3, 9, 16)
    assert signal.logits is not None
    assert signal.logits.shape == (4, 60)


def test_a_cost_is_of_what_is_read():
    """All but the first token save the last output projection and feed-forward."""
    model = a_model("bert", AutoModelForSequenceClassification)
    layer = 4 * 16 * 16 + 2 * 16 * 32
    tail = layer - 3 * 16 * 16
    read, whole = model_cost(model), model_cost(model, hidden=True)
    assert whole.per_token == 2 * 2 * layer
    assert read.per_token == 2 * (2 * layer - tail)
    assert read.per_sequence == whole.per_sequence + 2 * tail
    assert read.per_pair == whole.per_pair


def test_the_cost_of_a_vocabularys_head_is_that_of_the_places_it_sees():
    model = a_model("bert", AutoModelForMaskedLM)
    whole, body, part = model_cost(model), model_cost(model, 0.0), model_cost(model, 0.25)
    head = 16 * 16 + 16 * 60
    tail = 16 * 16 + 2 * 16 * 32
    assert whole.per_token - body.per_token == 2 * (head + tail)
    assert part.per_token == pytest.approx(0.25 * whole.per_token + 0.75 * body.per_token)
    kept = model_cost(model, 0.0, hidden=True)
    assert whole.per_token - kept.per_token == 2 * head


def test_an_encoder_without_a_head_is_left_alone():
    model = a_model("bert", AutoModelForSequenceClassification).base_model
    batch = a_batch()
    with reading(model, None):
        assert model(**model_inputs(model, batch)).last_hidden_state.shape == (3, 9, 16)


def test_another_class_of_a_known_name_is_left_alone():
    """A user's own may read every token."""

    class BertForSequenceClassification(transformers.BertForSequenceClassification):
        def forward(self, input_ids, attention_mask=None, token_type_ids=None):
            states = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
            return SequenceClassifierOutput(logits=self.classifier(states.mean(dim=1)))

    model = a_model("bert", AutoModelForSequenceClassification)
    own, batch = BertForSequenceClassification(model.config).eval(), a_batch()
    expected = logits(own, batch)
    with reading(own, None):
        assert torch.equal(logits(own, batch), expected)


def test_a_feed_forward_in_chunks_sees_all():
    model, batch = a_model("bert", AutoModelForSequenceClassification), a_batch()
    model.config.chunk_size_feed_forward = 3
    for layer in model.bert.encoder.layer:
        layer.chunk_size_feed_forward = 3
    expected = logits(model, batch)
    with reading(model, None):
        assert torch.equal(logits(model, batch), expected)
