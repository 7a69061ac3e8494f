"""Layer maps: which student layer learns from which teacher layer."""

import pytest

from distill.layer_map import layer_map


def test_uniform_takes_every_third_layer_as_in_the_paper():
    assert layer_map("uniform", 4, 12) == [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]


def test_uniform_serves_depths_that_do_not_divide():
    assert layer_map("uniform", 4, 6) == [(0, 0), (1, 2), (2, 3), (3, 5), (4, 6)]


@pytest.mark.parametrize("teacher", [1, 2, 6, 7, 12, 24])
def test_uniform_rises_and_ends_at_the_teachers_last_layer(teacher):
    for student in range(1, teacher + 1):
        own, layers = zip(*layer_map("uniform", student, teacher), strict=True)
        assert own == tuple(range(student + 1))
        assert layers == tuple(sorted(set(layers)))
        assert layers[-1] == teacher


def test_equal_depths_map_each_layer_to_itself():
    assert layer_map("uniform", 3, 3) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_last_compares_the_last_layers_alone():
    assert layer_map("last", 4, 12) == [(4, 12)]


def test_a_list_names_the_teachers_layers():
    assert layer_map([2, 2, 7], 3, 12) == [(0, 0), (1, 2), (2, 2), (3, 7)]


@pytest.mark.parametrize(
    ("spec", "student", "teacher", "reason"),
    [
        ("uniform", 7, 6, "student.layers: 7 is more than the teacher's 6"),
        ([1, 2], 3, 6, "names 2 layers and the student has 3"),
        ([1, 2, 7], 3, 6, "leaves the teacher's layers, 1 to 6"),
        ([0, 1, 2], 3, 6, "leaves the teacher's layers, 1 to 6"),
        ("first", 3, 6, "give uniform, last or a list"),
    ],
)
def test_impossible_maps_are_refused_with_the_reason(spec, student, teacher, reason):
    with pytest.raises(ValueError, match=reason):
        layer_map(spec, student, teacher)
