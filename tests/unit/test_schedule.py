"""Learning-rate schedules at their ends, their turns and in between."""

import pytest

from distill.schedule import ScheduleConfig, factor

NAMES = ["constant", "linear", "cosine", "cyclic"]


def factors(total: int, **settings) -> list[float]:
    """The factor at every step, and at the end that no step reaches."""
    config = ScheduleConfig(**settings)
    return [factor(config, step, total) for step in range(total + 1)]


@pytest.mark.parametrize("name", NAMES[:3])
def test_warm_up_rises_evenly_from_nothing(name):
    rates = factors(100, name=name, warmup=0.2)
    assert rates[:20] == pytest.approx([step / 20 for step in range(20)])
    assert rates[20] == pytest.approx(1)


def test_constant_stays():
    assert factors(10, name="constant", warmup=0.0) == [1.0] * 11


def test_linear_falls_evenly_to_nothing():
    rates = factors(100, name="linear", warmup=0.2)
    assert rates[20:] == pytest.approx([1 - step / 80 for step in range(81)])


def test_cosine_falls_to_nothing_through_its_half():
    rates = factors(100, name="cosine", warmup=0.2)
    assert [rates[step] for step in (20, 60, 100)] == pytest.approx([1, 0.5, 0])
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_cyclic_draws_one_triangle_a_cycle():
    rates = factors(80, name="cyclic", cycles=2)
    peak, foot = 1.0, 0.01
    assert [rates[step] for step in (0, 20, 40, 60, 80)] == pytest.approx([foot, peak, foot, peak, foot])
    assert rates[10] == pytest.approx((peak + foot) / 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("total", [1, 2, 7, 1000])
def test_factors_are_shares(name, warmup, total):
    assert all(0 <= rate <= 1 for rate in factors(total, name=name, warmup=warmup))


@pytest.mark.parametrize("name", NAMES[:3])
def test_without_warm_up_the_first_step_has_the_whole_rate(name):
    assert factors(10, name=name, warmup=0.0)[0] == 1
