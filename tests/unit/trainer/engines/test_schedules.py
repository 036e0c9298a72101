import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.optim import OptimSection
from trainer.engines.schedules import learning_rate_factor

steps = st.integers(0, 500)


def test_warm_up_is_linear_and_reaches_one():
    optim = OptimSection(warmup_steps=4, schedule="constant")
    factors = [learning_rate_factor(optim, step, 100) for step in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_starts_at_one_is_half_way_in_the_middle_and_ends_near_zero():
    optim = OptimSection(warmup_steps=10)
    assert learning_rate_factor(optim, 10, 110) == 1.0
    assert learning_rate_factor(optim, 60, 110) == pytest.approx(0.5, abs=1e-12)
    assert learning_rate_factor(optim, 35, 110) == pytest.approx((2 + math.sqrt(2)) / 4)
    assert learning_rate_factor(optim, 110, 110) == pytest.approx(0.0, abs=1e-12)


def test_multistep_multiplies_at_fractions_of_the_run():
    optim = OptimSection(schedule={"name": "multistep", "milestones": (0.5, 0.75), "gamma": 0.1})
    found = [learning_rate_factor(optim, step, 8) for step in range(8)]
    assert found == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


@given(step=steps, warmup=st.integers(0, 50), name=st.sampled_from(["constant", "cosine"]))
def test_factor_lies_between_zero_and_one_and_falls_after_warm_up(step, warmup, name):
    optim = OptimSection(schedule=name, warmup_steps=warmup)
    now, then = (learning_rate_factor(optim, s, 501) for s in (step, step + 1))
    assert 0 <= now <= 1
    assert then >= now if step + 1 < warmup else step < warmup or then <= now
