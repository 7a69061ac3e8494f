"""What the benchmark of checkpoints makes of its samples."""

import pytest

from benchmarks.checkpoints import summarise


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
