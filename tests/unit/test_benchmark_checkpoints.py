"""What the benchmark of checkpoints makes of its samples."""

import pytest

from benchmarks.checkpoints import summarise, summarise_checks


def test_a_cost_is_that_of_a_window_beside_the_one_of_its_round():
    samples = {
        "none": [10.0, 20.0, 10.0],  # a round in which the machine was slow
        "beside": [10.5, 20.6, 10.4],
        "waited": [12.0, 22.0, 13.0],
    }
    figures = summarise(samples, steps=10, every=50)
    assert figures["step_seconds"] == 1.0
    assert figures["beside_seconds"] == pytest.approx(0.5)
    assert figures["beside_share"] == pytest.approx(0.01)
    assert figures["waited_share"] == pytest.approx(0.04)


def test_checks_cost_rows_in_every_step_and_weights_in_one_of_many():
    steps = {
        "unchecked": [1.0, 2.0, 1.0],  # a round in which the machine was slow
        "rows": [1.01, 2.01, 1.01],
        "weights": [1.51, 2.51, 1.51],
    }
    alone = {"rows_alone": [0.001, 0.002, 0.9], "weights_alone": [0.1, 0.2, 0.05]}
    figures = summarise_checks(steps, alone, every=50)
    assert figures["rows_check_seconds"] == 0.002
    assert figures["weights_check_seconds"] == 0.1
    assert figures["checks_share"] == pytest.approx(0.004)
    assert figures["checks_share_by_steps"] == pytest.approx(0.02)
