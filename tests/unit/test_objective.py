"""The objective by invariance (padding, micro-batches), against the paper's formula, and its signals."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from distill import attention
from distill.attention import Collector, install
from distill.encoders import Batch, Signal, Teacher, run_encoder
from distill.layer_map import LayerMap
from distill.objective import Objective, count
from distill.settings import ObjectiveConfig, TeacherConfig

FAMILIES = ["bert", "roberta", "electra", "albert"]
SHAPE = {"vocab_size": 60, "num_attention_heads": 4, "intermediate_size": 48, "pad_token_id": 1}
WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LENGTHS = [12, 9, 5, 12, 3, 7, 11, 4]
EVERY_TERM = {
    "attention": 1.0,
    "relation": 0.4,
    "hidden": 0.7,
    "logits": 0.5,
    "labels": 0.3,
    "temperature": 2.0,
}


def encoder(family: str, layers: int, width: int, head: bool = False) -> PreTrainedModel:
    """A tiny encoder with random weights, bare or with a classifier; its layers differ visibly."""
    config = AutoConfig.for_model(
        family,
        num_hidden_layers=layers,
        hidden_size=width,
        initializer_range=0.2,
        embedding_size=16,  # ELECTRA and ALBERT project it to their width
        type_vocab_size=1 if family == "roberta" else 2,  # as RoBERTa is published
        num_labels=3,
        **SHAPE,
        **WITHOUT_DROPOUT,
    )
    model = (AutoModelForSequenceClassification if head else AutoModel).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases begin as 0, which hides mistakes
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batch_of(lengths: list[int], width: int | None = None, seed: int = 0) -> Batch:
    """Random sequences of these lengths, padded to `width` columns."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(5, 60, (len(lengths), longest), generator=generator)
    labels = torch.randint(0, 3, (len(lengths),), generator=generator)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    segments = mask * (torch.arange(longest) >= torch.tensor(lengths)[:, None] // 2)
    return padded(Batch(ids.where(mask > 0, 1), mask, segments, labels), width or longest)


def padded(batch: Batch, width: int) -> Batch:
    """The same rows with more columns of padding."""
    more = (0, width - batch.ids.shape[1])
    fill = nn.functional.pad
    return Batch(
        fill(batch.ids, more, value=1), fill(batch.mask, more), fill(batch.segments, more), batch.labels
    )


def part(batch: Batch, rows: slice) -> Batch:
    """Some rows, cut to the longest of them."""
    width = int(batch.mask[rows].sum(1).max())
    cut = [tensor[rows, :width] for tensor in (batch.ids, batch.mask, batch.segments)]
    return Batch(*cut, batch.labels[rows])


class Pair:
    """A student of 2 layers and a teacher of 4, under an objective."""

    def __init__(self, layers: LayerMap = ((0, 0), (1, 2), (2, 4)), **config):
        torch.manual_seed(0)
        self.teacher = encoder("bert", 4, 32, head=True)
        self.teacher_collector = install(self.teacher)
        student = encoder("bert", 2, 24, head=True)
        config = ObjectiveConfig(**config)
        self.objective = Objective(student, config, list(layers), 32)

    @torch.no_grad()
    def signal(self, batch: Batch) -> Signal:
        layers = [teacher for _, teacher in self.objective.layers]
        return run_encoder(
            self.teacher, self.teacher_collector, batch, layers, [layer for layer in layers if layer]
        )

    def terms(self, batch: Batch, counts: Tensor | None = None) -> dict[str, Tensor]:
        """The objective's terms; by default the batch is the whole step."""
        if counts is None:
            counts = count(batch, self.objective.config.normalise).float()
        return self.objective(batch, self.signal(batch), counts)

    def gradients(self) -> dict[str, Tensor]:
        found = {n: p.grad.clone() for n, p in self.objective.named_parameters() if p.grad is not None}
        self.objective.zero_grad()
        return found


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Every tensor is equal to within fp32 rounding of its size."""
    assert one.keys() == other.keys()
    largest = max(tensor.detach().norm() for tensor in other.values())
    for name, tensor in one.items():
        assert (tensor - other[name]).detach().norm() <= 1e-6 * largest, name


# ---- what the terms are divided by


def test_valid_counts_real_tokens_and_pairs():
    assert count(batch_of([3, 1, 2], width=5), "valid").tolist() == [3, 6, 14, 0, 6, 14]


def test_all_counts_padding_too():
    assert count(batch_of([3, 1, 2], width=5), "all").tolist() == [3, 15, 75, 0, 6, 14]


# ---- invariance


def test_padding_changes_no_term():
    pair, batch = Pair(**EVERY_TERM), batch_of(LENGTHS)
    assert_close(pair.terms(padded(batch, 31)), pair.terms(batch))


def test_padding_changes_no_gradient():
    pair, batch = Pair(**EVERY_TERM), batch_of(LENGTHS)
    pair.terms(batch)["loss"].backward()
    expected = pair.gradients()
    pair.terms(padded(batch, 31))["loss"].backward()
    assert_close(pair.gradients(), expected)


@pytest.mark.parametrize("cuts", [[0, 3, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8]], ids=["uneven", "single rows"])
def test_micro_batches_add_up_to_the_whole_batch(cuts):
    pair, batch = Pair(**EVERY_TERM), batch_of(LENGTHS)
    whole = pair.terms(batch)
    whole["loss"].backward()
    expected = pair.gradients()
    counts, total = count(batch, "valid").float(), {}
    for begin, end in itertools.pairwise(cuts):
        terms = pair.terms(part(batch, slice(begin, end)), counts)
        terms["loss"].backward()
        total = {name: term + total.get(name, 0) for name, term in terms.items()}
    assert_close(total, whole)
    assert_close(pair.gradients(), expected)


def test_the_loss_is_the_sum_of_its_weighted_terms():
    pair, batch = Pair(**EVERY_TERM), batch_of(LENGTHS)
    terms = pair.terms(batch)
    doubled = Pair(**EVERY_TERM | {"hidden": 1.4}).terms(batch)
    assert list(terms) == ["loss", "attention", "relation", "hidden", "logits", "labels"]
    assert terms["loss"].item() == pytest.approx(sum(t.item() for n, t in terms.items() if n != "loss"))
    assert doubled["hidden"].item() == pytest.approx(2 * terms["hidden"].item())


def test_a_term_of_no_weight_is_not_there():
    pair = Pair(hidden=1.0)
    assert list(pair.terms(batch_of(LENGTHS))) == ["loss", "hidden"]


def test_the_teacher_gets_no_gradient():
    pair = Pair(**EVERY_TERM)
    pair.terms(batch_of(LENGTHS))["loss"].backward()
    assert all(parameter.grad is None for parameter in pair.teacher.parameters())


# ---- logits and labels


KINDS = {"classes": "single_label_classification", "labels": "multi_label_classification", "number": None}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_compared_as_their_kind_asks(kind):
    """Sums over the rows divided by their number: cross-entropies and divergences, or squared errors."""
    torch.manual_seed(0)
    batch, student = batch_of(LENGTHS), encoder("bert", 2, 24, head=True)
    student.config.problem_type = KINDS[kind]
    student.classifier = nn.Linear(24, 1 if kind == "number" else 3)
    teacher = 3 * torch.randn(8, student.classifier.out_features)
    config = ObjectiveConfig(logits=0.5, logits_mse=0.2, labels=0.3, temperature=2.0)
    if kind != "classes":
        batch.labels = (teacher > 0).float() if kind == "labels" else torch.randn(8)
    own = student(batch.ids, batch.mask, batch.segments).logits
    terms = Objective(student, config, [], 32)(batch, Signal(teacher), count(batch, "valid"))
    error = (own - teacher).square().sum() / 8
    if kind == "number":
        logits, labels = error, (own.flatten() - batch.labels).square().mean()
    else:
        # a label's logit beside one of 0 is a softmax of two classes
        pair = (lambda x: x) if kind == "classes" else (lambda x: torch.stack([0 * x, x], -1).flatten(0, 1))
        chances, soft = pair(own).log_softmax(-1), [(pair(x) / 2).log_softmax(-1) for x in (own, teacher)]
        logits = 4 * nn.functional.kl_div(*soft, reduction="sum", log_target=True) / 8
        labels = nn.functional.nll_loss(chances, batch.labels.flatten().long(), reduction="sum") / 8
    expected = {"logits": 0.5 * logits, "logits_mse": 0.2 * error, "labels": 0.3 * labels}
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, check_dtype=False)


def test_masked_tokens_are_what_their_terms_are_divided_by():
    torch.manual_seed(0)
    student = AutoModelForMaskedLM.from_config(encoder("bert", 2, 24).config).eval()
    objective = Objective(student, ObjectiveConfig(logits=1.0, mlm=1.0), [], 32)
    batch, places = batch_of(LENGTHS), torch.tensor([2, 14, 15])
    whole = student(batch.ids, batch.mask, batch.segments).logits.flatten(0, 1)
    for masked in (places, places[:0]):  # short rows may have none
        some = replace(batch, masked=masked, labels=batch.ids.flatten()[masked])
        teacher = torch.randn(len(masked), 60)
        terms = objective(some, Signal(teacher), count(some, "valid"))
        number = max(1, len(masked))
        own, theirs = whole[masked].log_softmax(-1), teacher.log_softmax(-1)
        expected = nn.functional.kl_div(own, theirs, reduction="sum", log_target=True) / number
        torch.testing.assert_close(terms["logits"], expected, check_dtype=False)
        expected = nn.functional.nll_loss(own, some.labels, reduction="sum") / number
        torch.testing.assert_close(terms["mlm"], expected, check_dtype=False)


def likeness(own: Signal, teacher: Signal, batch: Batch) -> Tensor:
    """A term of the user's own."""
    return (own.logits * teacher.logits).sum()


def test_a_term_of_ones_own_is_weighted_and_divided_by_the_rows():
    pair, batch = Pair(custom={likeness: 0.4}), batch_of(LENGTHS)
    own = pair.objective.student(batch.ids, batch.mask, batch.segments).logits
    (value,) = (term for name, term in pair.terms(batch).items() if name != "loss")
    torch.testing.assert_close(value, 0.4 * likeness(Signal(own), pair.signal(batch), batch) / 8)


# ---- against the paper


def paper_loss(pair: Pair, batch: Batch, layers: LayerMap) -> tuple[Tensor, Tensor]:
    """Attention and hidden loss as the TinyBERT code computes them: means over everything.

    Scores of masked keys become 0 on both sides; padding queries and padding tokens count.
    """
    own, other = pair.objective.student, pair.teacher
    mse = nn.functional.mse_loss
    attention = hidden = torch.zeros(())
    student, teacher = naive_signal(own, batch), naive_signal(other, batch)
    for index, (i, j) in enumerate(layers):
        if i:
            attention = attention + mse(student["scores"][i - 1], teacher["scores"][j - 1])
        projection = pair.objective.projections[index]
        hidden = hidden + mse(nn.Linear.forward(projection, student["hidden"][i]), teacher["hidden"][j])
    return attention, hidden


def naive_signal(model: PreTrainedModel, batch: Batch) -> dict[str, list[Tensor]]:
    """Score matrices from the query and key layers' own outputs, and hidden states: eager attention."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    seen: dict[str, list[Tensor]] = {"query": [], "key": []}
    for name, module in model.named_modules():
        kind = name.rpartition(".")[2]
        if kind in seen:
            module.register_forward_hook(
                lambda _module, _input, output, kind=kind: seen[kind].append(output)
            )
    output = model(batch.ids, batch.mask, batch.segments, output_hidden_states=True)
    heads = model.config.num_attention_heads
    split = [[t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in seen[k]] for k in ("query", "key")]
    scores = [q @ k.mT / math.sqrt(q.shape[-1]) for q, k in zip(*split, strict=True)]
    return {
        "scores": [s * batch.mask[:, None, None, :] for s in scores],
        "hidden": list(output.hidden_states),
    }


def test_normalise_all_is_the_papers_loss():
    layers = [(0, 0), (1, 2), (2, 4)]
    pair, batch = Pair(layers, attention=1.0, hidden=1.0, normalise="all"), batch_of(LENGTHS, width=15)
    own, (attention, hidden) = pair.terms(batch), paper_loss(pair, batch, layers)
    assert own["attention"].item() == pytest.approx(attention.item(), rel=1e-5)
    assert own["hidden"].item() == pytest.approx(hidden.item(), rel=1e-5)


def test_without_padding_valid_and_all_are_one():
    batch = batch_of([9, 9, 9])
    one, other = (Pair(**EVERY_TERM, normalise=kind).terms(batch) for kind in ("valid", "all"))
    assert_close(one, other)


def test_an_equal_student_has_nothing_to_learn():
    torch.manual_seed(0)
    teacher = encoder("bert", 3, 32)
    student, collector = copy.deepcopy(teacher), install(teacher)
    config = ObjectiveConfig(attention=1.0, hidden=1.0)
    objective = Objective(student, config, [(0, 0), (1, 1), (2, 2), (3, 3)], 32)
    for projection in objective.projections:
        nn.init.eye_(projection.weight)
    batch = batch_of(LENGTHS)
    signal = run_encoder(teacher, collector, batch, [0, 1, 2, 3], [1, 2, 3])
    terms = objective(batch, signal, count(batch, "valid"))
    assert abs(terms["attention"]) <= 1e-12
    assert terms["hidden"] <= 1e-12


@pytest.mark.parametrize(("kind", "number"), [("per_layer", 3), ("shared", 1)])
def test_projections_are_as_many_as_asked_for(kind, number):
    assert len(Pair(hidden=1.0, projection=kind).objective.projections) == number


def test_projections_learn():
    pair = Pair(hidden=1.0)
    pair.terms(batch_of(LENGTHS))["loss"].backward()
    assert all(projection.weight.grad.norm() > 0 for projection in pair.objective.projections)


# ---- the signals, for every family


def signal_of(model: PreTrainedModel, collector: Collector, batch: Batch) -> Signal:
    layers = range(model.config.num_hidden_layers + 1)
    with torch.no_grad():
        return run_encoder(model, collector, batch, layers, layers[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_queries_and_keys_give_the_attention_maps(family):
    torch.manual_seed(0)
    model, batch = encoder(family, 3, 32), batch_of(LENGTHS)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    inputs = {"attention_mask": batch.mask}
    if model.config.type_vocab_size > 1:
        inputs["token_type_ids"] = batch.segments
    maps = eager(batch.ids, **inputs, output_attentions=True).attentions
    captured = signal_of(model, install(model), batch).attention
    hidden_keys = (batch.mask == 0)[:, None, None, :]
    assert list(captured) == [1, 2, 3]
    for heads, expected in zip(captured.values(), maps, strict=True):
        query, key = heads.query * heads.scaling, heads.key
        scores = (query @ key.mT).masked_fill(hidden_keys, -torch.inf)
        torch.testing.assert_close(torch.softmax(scores, dim=-1), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_zeros_behind_a_head_change_nothing(family, monkeypatch):
    """As GPUs want them for the default student's heads of 26."""
    torch.manual_seed(0)
    model, batch = encoder(family, 2, 36), batch_of(LENGTHS)
    whole = signal_of(model, install(model), batch)
    padded: list[int] = []
    monkeypatch.setattr(attention, "is_quick", lambda: False)  # SDPA's way, on a CPU too
    monkeypatch.setattr(attention, "_is_slow", lambda query: not padded.append(query.shape[-1]))
    again = signal_of(model, install(model), batch)
    assert padded
    assert all(size % 8 for size in padded)
    for layer, state in whole.hidden.items():
        torch.testing.assert_close(again.hidden[layer], state)
    for layer, heads in whole.attention.items():
        torch.testing.assert_close(again.attention[layer].query, heads.query)
        assert again.attention[layer].scaling == heads.scaling


@pytest.mark.parametrize("family", FAMILIES)
def test_capturing_changes_no_output(family, monkeypatch):
    monkeypatch.setattr(attention, "is_quick", lambda: False)
    torch.manual_seed(0)
    model, batch = encoder(family, 3, 32, head=True), batch_of(LENGTHS)
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    segments = batch.segments if model.config.type_vocab_size > 1 else None
    expected = plain(batch.ids, batch.mask, segments, output_hidden_states=True)
    own = signal_of(model, install(model), batch)
    assert torch.equal(own.logits, expected.logits)
    assert len(own.hidden) == len(expected.hidden_states) == 4
    for layer, state in enumerate(expected.hidden_states):
        assert torch.equal(own.hidden[layer], state)


@pytest.mark.skipif(not attention.is_quick(), reason="attention goes SDPA's way on this CPU")
@pytest.mark.parametrize(
    ("family", "taken"), [("bert", 3), ("roberta", 3), ("electra", 3), ("modernbert", 0)]
)
def test_one_pass_over_memory_attends_as_sdpa_does(family, taken, monkeypatch):
    torch.manual_seed(0)
    model, batch = encoder(family, 3, 32), batch_of(LENGTHS)
    collector, passes, attend = install(model), [], attention.attend
    monkeypatch.setattr(attention, "attend", lambda *given: passes.append(given) or attend(*given))
    own = signal_of(model, collector, batch)
    assert len(passes) == taken
    with torch.enable_grad():  # what may be trained goes SDPA's way
        expected = run_encoder(model, collector, batch, range(4), [1, 2, 3])
    assert len(passes) == taken
    there = batch.mask.bool()
    for layer, state in expected.hidden.items():
        torch.testing.assert_close(own.hidden[layer][there], state[there])
    assert all(map(torch.equal, own.attention[1][:3], expected.attention[1][:3]))


@pytest.mark.skipif(not attention.is_quick(), reason="attention goes SDPA's way on this CPU")
@pytest.mark.parametrize("kind", ["causal", "by head", "of one row for all"])
def test_masks_that_are_not_of_keys_are_followed(kind):
    torch.manual_seed(0)
    model, ids = encoder("bert", 2, 32), torch.randint(5, 50, (4, 7))
    install(model)
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    heads = model.config.num_attention_heads
    by_head = torch.rand(4, heads, 7, 7) > 0.5
    by_head[..., 0] = True
    mask = {
        "causal": causal.expand(4, 1, 7, 7),
        "by head": by_head,
        "of one row for all": (torch.arange(7) < 5).expand(1, 1, 7, 7),
    }[kind]
    expected = model(ids, attention_mask=mask).last_hidden_state
    with torch.no_grad():
        own = model(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_layers_are_counted_from_the_embedding(family):
    """Layer 0 is what enters the first layer, at the model's width."""
    torch.manual_seed(0)
    model, batch = encoder(family, 3, 32), batch_of(LENGTHS)
    entering: list[Tensor] = []
    layers = [module for name, module in model.named_modules() if name.endswith(("layer.0", "layers.0"))]
    layers[-1].register_forward_pre_hook(lambda _module, inputs: entering.append(inputs[0]))
    own = signal_of(model, install(model), batch)
    assert torch.equal(own.hidden[0], entering[0])
    assert all(state.shape == (8, 12, 32) for state in own.hidden.values())


@pytest.mark.parametrize(("family", "matters"), [("bert", True), ("roberta", False)])
def test_segments_reach_the_models_that_have_them(family, matters):
    torch.manual_seed(0)
    model, batch = encoder(family, 2, 32), batch_of(LENGTHS)
    collector, other = install(model), Batch(batch.ids, batch.mask, 1 - batch.segments)
    states = [signal_of(model, collector, b).hidden[2] for b in (batch, other)]
    assert torch.equal(*states) is not matters


def test_nothing_is_kept_of_passes_that_nobody_asked_about():
    model = encoder("bert", 2, 32)
    collector = install(model)
    model(batch_of(LENGTHS).ids)
    assert not collector.layers
    signal_of(model, collector, batch_of(LENGTHS))
    assert not collector.layers


@pytest.mark.parametrize("family", FAMILIES)
def test_wanted_layers_are_the_ones_kept(family):
    torch.manual_seed(0)
    model, batch = encoder(family, 3, 32), batch_of(LENGTHS)
    collector = install(model)
    every = signal_of(model, collector, batch).attention
    with torch.no_grad():
        some = run_encoder(model, collector, batch, [2], [1, 3])
    assert list(some.hidden) == [2]
    assert list(some.attention) == [1, 3]
    for layer, pair in some.attention.items():
        assert all(map(torch.equal, pair[:3], every[layer][:3]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_teacher_says_the_same_as_the_whole_one(family, tmp_path):
    torch.manual_seed(0)
    encoder(family, 4, 32).save_pretrained(tmp_path)
    config, batch = TeacherConfig(str(tmp_path), precision="fp32"), batch_of(LENGTHS)
    cut, whole = (
        Teacher(config, torch.device("cpu"), layers=n).signal(batch, [0, 1, 2], [1, 2]) for n in (2, 4)
    )
    for layer in (0, 1, 2):
        assert torch.equal(cut.hidden[layer], whole.hidden[layer])
    for layer in (1, 2):
        assert all(map(torch.equal, cut.attention[layer][:3], whole.attention[layer][:3]))
