"""Students that start from their teacher's weights."""

import pytest
import torch
from transformers import AlbertConfig, AutoModel, BertConfig, DistilBertConfig, ElectraConfig, RobertaConfig

from distill.encoders import build_backbone
from distill.inherit import every_kth, inherit
from distill.settings import StudentConfig

SAME = {"layers": 4, "hidden_size": 32, "heads": 4, "intermediate_size": 64}
FAMILIES = {
    "bert": BertConfig,
    "roberta": RobertaConfig,
    "electra": ElectraConfig,
    "albert": AlbertConfig,
}


def outputs(model) -> torch.Tensor:
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids).last_hidden_state


def test_a_student_of_the_teachers_shape_is_the_teacher(tiny_model):
    student = build_backbone(StudentConfig(**SAME, start="teacher"), tiny_model)
    torch.testing.assert_close(outputs(student), outputs(AutoModel.from_pretrained(tiny_model)))


def test_layers_are_chosen_evenly(tiny_model):
    student = build_backbone(StudentConfig(**{**SAME, "layers": 2}, start="teacher"), tiny_model)
    teacher = AutoModel.from_pretrained(tiny_model)
    for own, chosen in zip(student.encoder.layer, (1, 3), strict=True):
        for name, value in own.state_dict().items():
            assert torch.equal(value, teacher.encoder.layer[chosen].state_dict()[name])
    assert torch.equal(student.embeddings.word_embeddings.weight, teacher.embeddings.word_embeddings.weight)


def test_a_narrower_student_has_every_kth_unit_in_every_matrix(tiny_model):
    shape = {"layers": 2, "hidden_size": 16, "heads": 4, "intermediate_size": 32}
    student = build_backbone(StudentConfig(**shape, start="teacher"), tiny_model)
    teacher = AutoModel.from_pretrained(tiny_model)
    for own, whole in (
        (student.embeddings.word_embeddings.weight, teacher.embeddings.word_embeddings.weight[:, ::2]),
        (
            student.encoder.layer[1].attention.self.query.weight,
            teacher.encoder.layer[3].attention.self.query.weight[::2, ::2],
        ),
        (
            student.encoder.layer[0].output.dense.weight,
            teacher.encoder.layer[1].output.dense.weight[::2, ::2],
        ),
    ):
        assert torch.equal(own, whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, tmp_path):
    sizes = {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "embedding_size": 16,
    }
    teacher, student = (
        AutoModel.from_config(FAMILIES[family](**sizes, num_hidden_layers=layers)) for layers in (4, 2)
    )
    teacher.save_pretrained(tmp_path)
    inherit(student, str(tmp_path))
    have = [weight.flatten() for weight in teacher.state_dict().values()]
    for weight in student.state_dict().values():
        assert any(torch.equal(weight.flatten(), other) for other in have)


def test_uneven_sizes_keep_the_first_and_the_order():
    assert every_kth(torch.arange(10), torch.Size([4])).tolist() == [0, 2, 5, 7]


def test_another_family_is_refused(tiny_model):
    student = AutoModel.from_config(
        DistilBertConfig(
            vocab_size=99, max_position_embeddings=99, dim=32, hidden_dim=64, n_heads=4, n_layers=2
        )
    )
    with pytest.raises(ValueError, match=r"student\.start: the teacher .* has no .*; give random"):
        inherit(student, tiny_model)


def test_a_larger_weight_is_refused():
    with pytest.raises(
        ValueError, match=r"is \(4,\) and the teacher's is \(3,\); give a student that is no"
    ):
        every_kth(torch.zeros(3), torch.Size([4]))
