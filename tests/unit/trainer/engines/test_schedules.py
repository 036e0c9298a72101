import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.optim import OptimSection
from trainer.engines.schedules import learning_rate_factor
from trainer.recipes.published import TemperatureSection, temperature

steps = st.integers(0, 500)


def test_warm_up_is_linear_and_reaches_one():
    optim = OptimSection(warmup=4, schedule="constant")
    factors = [learning_rate_factor(optim, step, 100) for step in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_starts_at_one_is_half_way_in_the_middle_and_ends_near_zero():
    optim = OptimSection(warmup=10)
    assert learning_rate_factor(optim, 10, 110) == 1.0
    assert learning_rate_factor(optim, 60, 110) == pytest.approx(0.5, abs=1e-12)
    assert learning_rate_factor(optim, 35, 110) == pytest.approx((2 + math.sqrt(2)) / 4)
    assert learning_rate_factor(optim, 110, 110) == pytest.approx(0.0, abs=1e-12)


def test_multistep_multiplies_at_shares_of_the_run():
    optim = OptimSection(schedule="multistep", milestones=(0.5, 0.75), gamma=0.1)
    found = [learning_rate_factor(optim, step, 8) for step in range(8)]
    assert found == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


@given(step=steps, warmup=st.integers(0, 50), name=st.sampled_from(["constant", "cosine"]))
def test_factor_lies_between_zero_and_one_and_falls_after_warm_up(step, warmup, name):
    optim = OptimSection(schedule=name, warmup=warmup)
    now, then = (learning_rate_factor(optim, s, 501) for s in (step, step + 1))
    assert 0 <= now <= 1
    assert then >= now if step + 1 < warmup else step < warmup or then <= now


@pytest.mark.parametrize("shape", ["linear", "exponential"])
def test_temperature_has_its_ends_and_stays_at_the_last(shape):
    section = TemperatureSection(start=4.0, end=0.25, shape=shape)
    assert temperature(section, 0, 40) == 4.0
    assert temperature(section, 40, 40) == pytest.approx(0.25)
    assert temperature(section, 400, 40) == pytest.approx(0.25)


def test_temperature_in_the_middle():
    assert temperature(TemperatureSection(start=4, end=1, shape="linear"), 5, 10) == 2.5
    assert temperature(TemperatureSection(start=4, end=1), 5, 10) == pytest.approx(2.0)


def test_temperature_of_a_run_that_finishes_at_once():
    assert temperature(TemperatureSection(start=4, end=1), 0, 0) == 4.0
    assert temperature(TemperatureSection(start=4, end=1), 1, 0) == pytest.approx(1.0)


@given(
    step=steps,
    ends=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)),
    shape=st.sampled_from(["linear", "exponential"]),
)
def test_temperature_moves_from_start_to_end_without_turning(step, ends, shape):
    section = TemperatureSection(start=ends[0], end=ends[1], shape=shape)
    now, then = (temperature(section, s, 300) for s in (step, step + 1))
    assert min(ends) * (1 - 1e-9) <= now <= max(ends) * (1 + 1e-9)
    assert (then - now) * (ends[1] - ends[0]) >= -1e-9 * max(ends) ** 2
