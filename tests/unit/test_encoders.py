"""Teachers and students: shapes, dropout, precision, and folders that other tools can load."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    PreTrainedModel,
)

from data_pipeline.vocabulary import load_vocabulary
from distill.attention import NAME, install
from distill.encoders import (
    PROJECTIONS,
    Batch,
    Teacher,
    build_backbone,
    build_classifier,
    has_bf16_units,
    load_classifier,
    precision_of,
    read_config,
    run_encoder,
    save_model,
    saved_projections,
    student_shape,
    with_dropout,
)
from distill.general import start_projections
from distill.layer_map import layer_map
from distill.model_facts import own_labels, positions
from distill.settings import StudentConfig, TeacherConfig

CPU = torch.device("cpu")
SMALL = StudentConfig(layers=2, hidden_size=24, heads=4, intermediate_size=40)
FAMILIES = ["bert", "roberta", "electra", "albert", "deberta", "deberta-v2", "modernbert", "nezha"]
NUMBERS = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
INPUTS = {
    "input_ids": torch.tensor([[2, 9, 8, 7, 3], [2, 5, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}


def save(model: PreTrainedModel, target, tokenizer: str, projections: nn.Module | None = None) -> None:
    save_model(
        model, target, tokenizer, model.state_dict(), projections.state_dict() if projections else {}
    )


@pytest.fixture
def classifier(tiny_model) -> PreTrainedModel:
    """A student classifier as jobs make it, with the capturing attention installed."""
    torch.manual_seed(0)
    model = build_classifier(None, student_shape(SMALL, read_config(tiny_model)), ["bad", "good"]).eval()
    install(model)
    return model


# ---- forward passes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("full", [True, False])
def test_a_forward_pass_asks_nothing_of_the_device(family, full):
    """A GPU would have to end all that it was given before. A tensor without data can't answer."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **NUMBERS)).eval()
    collector = install(model)
    ids, mask = INPUTS["input_ids"], INPUTS["attention_mask"]
    mask = torch.ones_like(mask) if full else mask
    batch = Batch(ids, mask, torch.zeros_like(ids)).to(CPU)
    assert batch.full == full
    expected = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(run_encoder(model, collector, batch).logits, expected)
    if model.config._attn_implementation == NAME:
        nowhere = torch.device("meta")
        assert run_encoder(model.to(nowhere), collector, batch.to(nowhere)).logits.shape == (2, 2)


# ---- shapes


def test_a_student_has_its_own_shape_and_the_teachers_vocabulary(tiny_model):
    teacher, student = read_config(tiny_model), build_backbone(SMALL, tiny_model).config
    shape = student.num_hidden_layers, student.hidden_size, student.num_attention_heads
    assert (*shape, student.intermediate_size) == (2, 24, 4, 40)
    for name in ("model_type", "vocab_size", "type_vocab_size", "max_position_embeddings", "pad_token_id"):
        assert getattr(student, name) == getattr(teacher, name)


def test_a_student_of_a_folder_has_its_shape_and_weights(tiny_model, tmp_path):
    first = build_backbone(SMALL, tiny_model)
    save(first, tmp_path / "student", tiny_model)
    again = build_backbone(StudentConfig(path=str(tmp_path / "student"), layers=9), tiny_model)
    assert again.config.num_hidden_layers == 2
    assert all(torch.equal(again.state_dict()[name], value) for name, value in first.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_student_of_every_family_is_saved_and_loads(family, tiny_tokenizer, tmp_path):
    base = AutoConfig.for_model(family, **NUMBERS)
    model = build_classifier(None, student_shape(SMALL, base), ["bad", "good"]).eval()
    save(model, tmp_path / "student", tiny_tokenizer)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert loaded.config.num_hidden_layers == 2
    assert torch.equal(loaded(**INPUTS).logits, model(**INPUTS).logits)


@pytest.mark.parametrize(("layers", "taken"), [(4, [5, 10, 16, 21]), (22, range(22))])
def test_a_students_layers_look_as_far_as_those_they_learn_from(layers, taken):
    base = AutoConfig.for_model("modernbert", **{**NUMBERS, "num_hidden_layers": 22})
    shape = student_shape(replace(SMALL, layers=layers), base)
    assert [teacher - 1 for _, teacher in layer_map("uniform", layers, 22)[1:]] == list(taken)
    assert shape.layer_types == [base.layer_types[layer] for layer in taken]


def test_shaping_a_student_leaves_the_teachers_configuration_alone(tiny_model):
    config = read_config(tiny_model)
    before = config.to_dict()
    student_shape(SMALL, config)
    assert config.to_dict() == before


def test_a_backbone_has_no_pooler(tiny_model):
    assert build_backbone(SMALL, tiny_model).pooler is None
    assert Teacher(TeacherConfig(tiny_model), CPU, layers=2).model.pooler is None


def test_students_are_fp32_whatever_the_teacher_was_saved_in(tiny_model, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, dtype=torch.float16)
    model.save_pretrained(tmp_path)
    path = str(tmp_path)
    load_half = StudentConfig(path=path)
    built = [
        *(build_backbone(student, path) for student in (SMALL, load_half)),
        *(build_classifier(p, read_config(path), ["bad", "good"]) for p in (None, path)),
    ]
    assert {parameter.dtype for model in built for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_is_set_everywhere(family, dropout):
    config = with_dropout(AutoConfig.for_model(family, **NUMBERS), dropout)
    model = AutoModelForSequenceClassification.from_config(config)
    found = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert found == {dropout}


@pytest.mark.parametrize("family", FAMILIES)
def test_without_dropout_training_is_deterministic(family):
    config = with_dropout(AutoConfig.for_model(family, **NUMBERS), 0.0)
    model = AutoModelForSequenceClassification.from_config(config).train()
    install(model)
    assert torch.equal(model(**INPUTS).logits, model(**INPUTS).logits)


def test_labels_are_the_classifiers_outputs_in_order(classifier):
    assert classifier.config.id2label == {0: "bad", 1: "good"}
    assert classifier(**INPUTS).logits.shape == (2, 2)


def test_no_labels_make_a_regression(tiny_model):
    model = build_classifier(None, student_shape(SMALL, read_config(tiny_model)), [])
    assert model.config.problem_type == "regression"
    assert model(**INPUTS).logits.shape == (2, 1)


# ---- saved folders


def test_a_saved_classifier_gives_the_same_logits_to_other_tools(classifier, tiny_model, tmp_path):
    save(classifier, tmp_path / "student", tiny_model)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert type(loaded) is BertForSequenceClassification
    assert not loaded.training
    assert torch.equal(loaded(**INPUTS).logits, classifier(**INPUTS).logits)
    assert loaded.config.id2label == {0: "bad", 1: "good"}


def test_a_saved_classifier_gives_the_same_logits_here(classifier, tiny_model, tmp_path):
    save(classifier, tmp_path / "student", tiny_model)
    again = build_classifier(
        str(tmp_path / "student"), read_config(str(tmp_path / "student")), ["bad", "good"]
    )
    assert torch.equal(again.eval()(**INPUTS).logits, classifier(**INPUTS).logits)


def test_a_saved_folder_knows_nothing_of_our_attention(classifier, tiny_model, tmp_path):
    save(classifier, tmp_path / "student", tiny_model)
    assert "distillery" not in (tmp_path / "student" / "config.json").read_text()
    assert classifier.config._attn_implementation == "distillery"  # and training goes on


def test_a_bf16_student_is_saved_in_fp32(classifier, tiny_model, tmp_path):
    save(classifier.bfloat16(), tmp_path / "student", tiny_model)
    assert json.loads((tmp_path / "student" / "config.json").read_text())["dtype"] == "float32"
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.classifier.weight, classifier.classifier.weight.float())


def test_a_saved_folder_holds_the_tokenizer(classifier, tiny_model, tmp_path):
    save(classifier, tmp_path / "student", tiny_model)
    own, other = (AutoTokenizer.from_pretrained(path) for path in (tiny_model, tmp_path / "student"))
    assert own("the food was not good").input_ids == other("the food was not good").input_ids
    assert load_vocabulary(str(tmp_path / "student")).fingerprint == load_vocabulary(tiny_model).fingerprint


def test_saving_again_replaces_the_folder(classifier, tiny_model, tmp_path):
    save(classifier, tmp_path / "student", tiny_model, nn.Linear(2, 2))
    save(classifier, tmp_path / "student", tiny_model)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert not (tmp_path / "student" / PROJECTIONS).exists()


# ---- projections


def projections(width: int, number: int = 2) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(24, width) for _ in range(number))


def test_projections_come_back_with_their_student(classifier, tiny_model, tmp_path):
    saved, objective = projections(32), SimpleNamespace(projections=projections(32))
    save(classifier, tmp_path / "student", tiny_model, saved)
    start_projections(objective, saved_projections(str(tmp_path / "student")))
    assert all(map(torch.equal, saved.parameters(), objective.projections.parameters()))


@pytest.mark.parametrize(
    ("other", "warned"),
    [(projections(48), True), (projections(32, 3), True), (projections(32, 0), False)],
    ids=["wider", "more", "none"],
)
def test_projections_of_another_teacher_are_left_alone(
    classifier, tiny_model, tmp_path, capsys, other, warned
):
    save(classifier, tmp_path / "student", tiny_model, projections(32))
    before = [parameter.clone() for parameter in other.parameters()]
    start_projections(SimpleNamespace(projections=other), saved_projections(str(tmp_path / "student")))
    assert all(map(torch.equal, before, other.parameters()))
    said = capsys.readouterr().err
    assert said.count("warning: the projections trained before are of other layers or widths") == warned


@pytest.mark.parametrize("path", [None, "the teacher's"])
def test_no_projections_are_no_mistake(tiny_model, path, capsys):
    start_projections(SimpleNamespace(projections=projections(32)), saved_projections(path and tiny_model))
    assert "warning" not in capsys.readouterr().err


# ---- teachers


def test_a_teacher_is_in_eval_mode_without_gradients(tiny_model):
    model = Teacher(TeacherConfig(tiny_model), CPU, layers=2).model
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_teachers_dropout_can_be_left_live(tiny_model):
    model = Teacher(TeacherConfig(tiny_model, dropout=True), CPU, layers=2).model
    assert all(module.training for module in model.modules())


def test_a_teacher_without_weights_of_its_head_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"lacks weights of its head: classifier\.bias, classifier"):
        Teacher(TeacherConfig(tiny_model), CPU)


def test_a_measured_model_without_weights_of_its_head_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"lacks weights of its head: classifier\.bias, classifier"):
        load_classifier(tiny_model)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["LABEL_0", "LABEL_1"], None),
        (["LABEL_1", "LABEL_0"], ["LABEL_1", "LABEL_0"]),
        (["LABEL_x", "LABEL_a"], ["LABEL_x", "LABEL_a"]),
    ],
)
def test_only_numbers_in_their_order_are_no_labels(names, labels):
    assert own_labels({"id2label": {str(number): name for number, name in enumerate(names)}}) == labels


def test_a_teacher_is_cut_after_the_last_layer_needed(tiny_model):
    assert len(Teacher(TeacherConfig(tiny_model), CPU, layers=3).model.encoder.layer) == 3


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_cut_teacher_says_what_the_whole_one_says_there(family, tmp_path):
    whole = AutoModel.from_config(AutoConfig.for_model(family, **NUMBERS)).eval()
    whole.save_pretrained(tmp_path)
    states = whole(**INPUTS, output_hidden_states=True).hidden_states
    for layers in (2, 4):
        cut = Teacher(TeacherConfig(str(tmp_path), "fp32"), CPU, layers).model
        found = cut(**INPUTS, output_hidden_states=True).hidden_states
        assert len(found) == layers + 1
        for one, other in zip(found, states, strict=False):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("vnni", [True, False])
def test_auto_precision_follows_the_processors_units(monkeypatch, tiny_model, amx, vnni):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    products = torch.bfloat16 if amx else torch.int8 if vnni else torch.float32
    assert has_bf16_units(CPU) is amx
    assert precision_of("auto", CPU) == products
    teacher = Teacher(TeacherConfig(tiny_model), CPU, layers=1)
    assert teacher.products == products
    assert teacher.model.dtype == (torch.bfloat16 if amx else torch.float32)


@pytest.mark.parametrize(
    ("name", "flag", "products"),
    [
        ("AuthenticAMD", True, torch.bfloat16),
        ("AuthenticAMD", False, torch.float32),
        ("GenuineIntel", True, torch.float32),
    ],
)
def test_what_is_kept_is_never_of_int8(monkeypatch, tmp_path, name, flag, products):
    """In bf16 without AMX where that was measured to be faster."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: flag)
    (tmp_path / "cpuinfo").write_text(f"vendor_id : {name}\n")
    monkeypatch.setattr("distill.products.CPUINFO", tmp_path / "cpuinfo")
    assert precision_of("auto", CPU, kept=True) == products
    assert precision_of("auto", CPU) == torch.int8


@pytest.mark.parametrize(("capability", "units"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_have_bf16_units_since_ampere(monkeypatch, capability, units):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_bf16_units(torch.device("cuda")) is units


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("int8", torch.int8)]
)
def test_a_given_precision_is_kept(name, dtype):
    assert precision_of(name, CPU) == dtype


@pytest.mark.parametrize(
    "family",
    ["bert", "roberta", "roberta-prelayernorm", "xlm-roberta-xl", "mpnet", "data2vec-text", "luke",
      "ibert", "markuplm"],
)  # fmt: skip
@pytest.mark.parametrize("pad", [0, 3])
def test_a_model_takes_as_many_tokens_as_are_counted_and_no_more(family, pad):
    numbers = {**NUMBERS, "num_hidden_layers": 1, "intermediate_size": 32, "pad_token_id": pad}
    config = AutoConfig.for_model(family, **numbers, max_position_embeddings=14)
    model = AutoModel.from_config(config).eval()
    longest = positions(config.to_dict())
    assert model(input_ids=torch.full((1, longest), 7)).last_hidden_state.shape[1] == longest
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 7))
