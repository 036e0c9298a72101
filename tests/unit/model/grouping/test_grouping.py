"""Start values, samplers and their gradients, and the noise."""
# Legend: N tasks, K branches, S samples.

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.distributions import RelaxedOneHotCategorical

from dmtg import plugins
from model.grouping.grouping import Grouping, gumbel_noise
from model.grouping.samplers.diagonal import diagonal

SAMPLERS = plugins.SAMPLERS.names()
ALIVE = [[True, True, False], [True, True, True], [False, True, False]]
LOGITS = [[0.3, -1.0, 0.2], [0.5, 0.1, 0.0], [2.0, 0.4, 1.0]]


def filled(logits, alive=None, sampler="gumbel", dtype=torch.float32):
    grouping = Grouping(len(logits), len(logits[0]), sampler).to(dtype)
    with torch.no_grad():
        grouping.logits.copy_(torch.as_tensor(logits))
        if alive is not None:
            grouping.alive.copy_(torch.tensor(alive))
    return grouping


def noise_of(sampler, step, num_tasks=3, num_branches=3):
    shape = (num_tasks, num_branches, *((4,) if sampler == "gumbel_per_sample" else ()))
    return gumbel_noise(shape, 1, step)


def test_start_is_uniform_and_fp32():
    grouping = Grouping(3, 4)
    assert grouping.logits.dtype == torch.float32
    assert torch.equal(grouping.probabilities(), torch.full((3, 4), 0.25))
    assert len(grouping.heads()) == 12


def test_start_noise_is_seeded_and_bounded():
    one, same, other = (Grouping(5, 3, logits_noise=0.1, seed=s).logits.detach() for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert float(one.min()) >= 1.0 and float(one.max()) <= 1.1
    assert float(one.max() - one.min()) > 0.01


def test_diagonal_start():
    grouping = Grouping(4, 3, logits_init="diagonal", logits_value=2.0)
    assert grouping.logits.tolist() == [[2, 0, 0], [0, 2, 0], [0, 0, 2], [2, 0, 0]]
    assert torch.equal(diagonal(2, 3), torch.eye(3)[:2])


def test_gaussian_start_is_seeded_and_normal():
    one, same, other = (
        Grouping(400, 5, logits_init="gaussian", logits_value=0.5, seed=s).logits.detach()
        for s in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert stats.kstest(one.flatten().numpy(), stats.norm(0, 0.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rows_sum_to_one_and_dead_heads_have_nothing(sampler):
    alive = diagonal(3, 3).bool().tolist() if sampler == "diagonal" else ALIVE
    grouping = filled(LOGITS, alive, sampler)
    for step in range(20):
        noise = noise_of(sampler, step)
        z = grouping.sample(noise, 0.5).detach()
        assert z.shape == (noise.shape if sampler == "gumbel_per_sample" else (3, 3))
        torch.testing.assert_close(z.sum(dim=1), torch.ones_like(z.sum(dim=1)))
        assert not z[~grouping.alive].any() and float(z.min()) >= 0


@pytest.mark.parametrize("sampler", ["gumbel", "gumbel_per_sample", "relaxed_one_hot"])
def test_same_transform_as_torchs_distribution(sampler):
    torch.manual_seed(3)
    logits, tau = torch.randn(5, 4), 0.8
    shape = (6,) if sampler == "gumbel_per_sample" else ()
    state = torch.get_rng_state()
    expected = RelaxedOneHotCategorical(torch.tensor(tau), logits=logits).rsample(shape)
    torch.set_rng_state(state)
    noise = -(-torch.rand(*shape, 5, 4).log()).log()
    if shape:  # samples come last here
        expected, noise = expected.permute(1, 2, 0), noise.permute(1, 2, 0)
    z = filled(logits, sampler=sampler).sample(noise, tau).detach()
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-6)


def test_sample_against_numpy_on_the_live_branches():
    grouping = filled([[0.3, -1.0, 2.0]], [[True, False, True]])
    noise = torch.tensor([[0.5, 9.0, -0.2]])
    live = np.exp(np.array([0.8, 1.8]) / 0.7)
    expected = [live[0] / live.sum(), 0.0, live[1] / live.sum()]
    np.testing.assert_allclose(grouping.sample(noise, 0.7)[0].detach(), expected, rtol=1e-6)


def test_softmax_ignores_the_noise():
    grouping = filled(LOGITS, ALIVE, "softmax")
    one, other = (grouping.sample(noise_of("softmax", step), 2.0).detach() for step in (0, 1))
    assert torch.equal(one, other)
    expected = [np.exp(0.15) / (np.exp(0.15) + np.exp(-0.5)), 0.0]
    np.testing.assert_allclose([one[0, 0], one[0, 2]], expected, rtol=1e-6)


def test_diagonal_sampler_is_fixed_and_learns_nothing():
    grouping = filled([[0.0, 3.0]] * 3, sampler="diagonal")
    z = grouping.sample(torch.zeros(3, 2), 1.0)
    assert z.tolist() == [[1, 0], [0, 1], [1, 0]]
    assert torch.equal(grouping.probabilities(), z)
    assert not grouping.logit_gradient(z, torch.rand(3, 2)).any()


def test_straight_through_is_one_hot_with_the_relaxed_gradient():
    hard = filled(LOGITS, ALIVE, "straight_through")
    soft = filled(LOGITS, ALIVE)
    for step in range(20):
        noise, losses = noise_of("straight_through", step), torch.rand(3, 3)
        z_hard, z_soft = hard.sample(noise, 0.5), soft.sample(noise, 0.5)
        assert sorted(z_hard.detach().flatten().tolist()) == [0] * 6 + [1] * 3
        assert torch.equal(z_hard.argmax(1), z_soft.argmax(1))
        found, expected = (
            own.logit_gradient(z, losses) for own, z in ((hard, z_hard), (soft, z_soft))
        )
        torch.testing.assert_close(found, expected)


def mean_objective(sampler, logits, losses, tau=0.7, draws=8):
    """The mean over fixed draws of sum(z * losses), and its gradient, all in float64."""
    grouping = filled(logits, ALIVE, sampler, torch.float64)
    values, gradients = [], []
    for step in range(draws):
        z = grouping.sample(noise_of(sampler, step).double(), tau)
        values.append(float((z.detach() * losses).sum()))
        gradients.append(grouping.logit_gradient(z, losses))
    return np.mean(values), torch.stack(gradients).mean(dim=0)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "diagonal"])
def test_gradient_against_central_differences(sampler):
    """Of the expected objective over fixed noise; `straight_through` has the relaxed one's."""
    smooth = "gumbel" if sampler == "straight_through" else sampler
    torch.manual_seed(0)
    losses = torch.rand(*noise_of(sampler, 0).shape)
    _, gradient = mean_objective(sampler, LOGITS, losses)
    assert float(gradient.abs().max()) > 1e-2
    for row in range(3):
        for column in range(3):
            values = []
            for step in (1e-5, -1e-5):
                moved = torch.tensor(LOGITS, dtype=torch.float64)
                moved[row, column] += step
                values.append(mean_objective(smooth, moved, losses)[0])
            slope = (values[0] - values[1]) / 2e-5
            assert float(gradient[row, column]) == pytest.approx(slope, abs=1e-8), (row, column)
    assert not gradient[~torch.tensor(ALIVE)].any()


def test_gradient_ignores_losses_of_dead_heads_and_keeps_no_graph():
    grouping = filled([[0.0, 0.0]], [[True, False]])
    losses = torch.tensor([[1.0, float("nan")]], requires_grad=True)
    gradient = grouping.logit_gradient(grouping.sample(torch.zeros(1, 2), 1.0), losses)
    assert gradient.tolist() == [[0.0, 0.0]]
    assert not gradient.requires_grad and losses.grad is None and grouping.logits.grad is None


def test_heads_are_the_live_ones():
    grouping = filled(
        [[1.0, 1.0, 1.0], [0.0, 5.0, 1.0]], [[False, True, True], [True, False, True]]
    )
    assert grouping.heads() == [(0, 1), (0, 2), (1, 0), (1, 2)]
    assert grouping.probabilities()[0].tolist() == [0.0, 0.5, 0.5]


def test_round_trip_of_the_state():
    grouping = filled([[0.1, 0.2]], [[False, True]])
    other = Grouping(1, 2)
    other.load_state_dict(grouping.state_dict())
    assert torch.equal(other.probabilities(), grouping.probabilities())


@given(seed=st.integers(0, 2**63 - 1), step=st.integers(0, 10**9))
@settings(max_examples=25, deadline=None)
def test_noise_is_a_function_of_seed_step_and_rank(seed, step):
    noise = gumbel_noise((3, 4), seed, step)
    assert noise.isfinite().all() and noise.dtype == torch.float32
    assert torch.equal(noise, gumbel_noise((3, 4), seed, step))
    assert not torch.equal(noise, gumbel_noise((3, 4), seed, step + 1))
    assert not torch.equal(noise, gumbel_noise((3, 4), seed, step, rank=1))


def test_noise_follows_the_gumbel_distribution():
    noise = torch.cat([gumbel_noise((10, 10), 0, step).flatten() for step in range(50)])
    assert stats.kstest(noise.numpy(), "gumbel_r").pvalue > 0.01


def test_argmax_of_noisy_logits_follows_the_probabilities():
    grouping = filled([[0.0, 1.0, 2.0]] * 5000)
    picks = (grouping.logits.detach() + gumbel_noise((5000, 3), 4, 0)).argmax(dim=1)
    shares = torch.bincount(picks, minlength=3) / 5000
    torch.testing.assert_close(shares, grouping.probabilities()[0], atol=0.03, rtol=0)


def test_faults():
    names = ", ".join(SAMPLERS)
    with pytest.raises(ValueError, match=rf"grouping\.sampler is 'hard', must be one of {names}"):
        Grouping(1, 2, "hard")
    with pytest.raises(
        ValueError,
        match=r"grouping\.logits_init is 'zero', must be one of equal, diagonal, gaussian",
    ):
        Grouping(1, 2, logits_init="zero")
    for sampler in SAMPLERS:
        with pytest.raises(ValueError, match="tau is 0, must be above 0"):
            Grouping(1, 2, sampler).sample(torch.zeros(1, 2), 0)
