"""The entropy term: its value, its gradient, and what happens where nothing is left to decide."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from scipy.stats import bernoulli, entropy

from model.grouping.grouping import Grouping

FOLDER = Path(__file__).resolve().parents[3] / "fixtures" / "reference"
STEP = FOLDER / "celeba_step_k2_n3.npz"
FORMS = ("binary", "plain")


def filled(logits, alive=None, dtype=torch.float32):
    logits = torch.as_tensor(logits, dtype=dtype)
    grouping = Grouping(*logits.shape).to(dtype)
    with torch.no_grad():
        grouping.logits.copy_(logits)
        if alive is not None:
            grouping.alive.copy_(torch.as_tensor(alive))
    return grouping


def value_of(grouping, form):
    return grouping.entropy(form).item()


def gradient_of(grouping, form):
    return torch.autograd.grad(grouping.entropy(form), grouping.logits)[0]


def expected(logits, form):
    """By scipy, over rows of logits that are all alive."""
    probabilities = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    if form == "plain":
        return entropy(probabilities, axis=1).mean()
    return bernoulli(probabilities).entropy().sum(axis=1).mean()


@pytest.mark.parametrize("form", FORMS)
@given(logits=arrays(np.float32, (3, 4), elements=st.floats(-8, 8, width=32)))
@settings(max_examples=30, deadline=None)
def test_value_against_scipy(form, logits):
    assert value_of(filled(logits), form) == pytest.approx(expected(logits, form), rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_against_central_differences(form):
    logits = np.random.default_rng(0).normal(size=(3, 4)) * 2
    gradient = gradient_of(filled(logits, dtype=torch.float64), form)
    for cell in np.ndindex(3, 4):
        values = []
        for step in (1e-5, -1e-5):
            moved = logits.copy()
            moved[cell] += step
            values.append(expected(moved, form))
        assert float(gradient[cell]) == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-8)


def test_the_published_form_is_the_binary_one():
    with np.load(STEP) as arrays_of_step:
        logits, value = arrays_of_step["group_logits"], float(arrays_of_step["entropy"])
    assert value_of(filled(logits), "binary") == pytest.approx(value, rel=1e-5)
    # The two events of a task with two branches are one, counted twice.
    assert value_of(filled(logits), "plain") == pytest.approx(value / 2, rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [30.0, 200.0, 1e4])
def test_finite_where_the_distributions_are_sharp(form, size):
    grouping = filled([[size, -size, -size], [-size, size, size], [0.0, size, -size]])
    value, gradient = value_of(grouping, form), gradient_of(grouping, form)
    # All decided but the second task, which hesitates between two branches.
    expected_value = (2 if form == "binary" else 1) * np.log(2) / 3
    assert value == pytest.approx(expected_value, abs=1e-5)
    assert gradient.isfinite().all() and float(gradient.abs().max()) < 1e-5


def test_small_entropies_do_not_vanish():
    """1 - p is zero in fp32 here, and its logarithm would be minus infinity."""
    grouping = filled([[20.0, 0.0, 0.0]])
    rest = np.exp(np.longdouble(-20.0))
    p, others = 1 / (1 + 2 * rest), rest / (1 + 2 * rest)
    own = -p * np.log1p(-2 * others) - 2 * others * np.log(2 * others)
    binary = own - 2 * (others * np.log(others) + (1 - others) * np.log1p(-others))
    assert value_of(grouping, "binary") == pytest.approx(float(binary), abs=1e-8)
    assert float(binary) > 1.5e-7
    plain = -p * np.log1p(-2 * others) - 2 * others * np.log(others)
    assert value_of(grouping, "plain") == pytest.approx(float(plain), abs=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_heads_that_are_off_take_no_part(form):
    alive = [[True, False, True], [False, True, False]]
    grouping = filled([[0.3, 9.0, -0.5], [0.0, 0.0, 0.0]], alive)
    pair = expected([[0.3, -0.5]], form)
    assert value_of(grouping, form) == pytest.approx(pair / 2, rel=1e-5)
    gradient = gradient_of(grouping, form)
    assert gradient.isfinite().all() and not gradient[~grouping.alive].any()
    assert not gradient[1].any(), "one head is no choice"
    alone = gradient_of(filled([[0.3, -0.5]]), form)[0] / 2
    torch.testing.assert_close(gradient[0, [0, 2]], alone)


@pytest.mark.parametrize("form", FORMS)
def test_one_branch_has_no_entropy(form):
    grouping = filled([[1.0], [2.0]])
    assert value_of(grouping, form) == 0.0 and not gradient_of(grouping, form).any()
