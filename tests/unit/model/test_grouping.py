import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from model.grouping import Grouping, gumbel_noise


def filled(logits, alive=None, sampler="gumbel"):
    grouping = Grouping(len(logits), len(logits[0]), sampler)
    with torch.no_grad():
        grouping.logits.copy_(torch.tensor(logits))
        if alive is not None:
            grouping.alive.copy_(torch.tensor(alive))
    return grouping


def test_start_is_uniform_and_fp32():
    grouping = Grouping(3, 4)
    assert grouping.logits.dtype == torch.float32
    assert torch.equal(grouping.probabilities(), torch.full((3, 4), 0.25))
    assert len(grouping.heads()) == 12


def test_start_noise_is_seeded_and_bounded():
    one, same, other = (Grouping(5, 3, init_noise=0.1, seed=s).logits.detach() for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert float(one.min()) >= 1.0 and float(one.max()) <= 1.1
    assert float(one.max() - one.min()) > 0.01


def test_sample_against_scipy_on_the_live_branches():
    grouping = filled([[0.3, -1.0, 2.0]], [[True, False, True]])
    noise = torch.tensor([[0.5, 9.0, -0.2]])
    live = np.exp(np.array([0.8, 1.8]) / 0.7)
    expected = [live[0] / live.sum(), 0.0, live[1] / live.sum()]
    np.testing.assert_allclose(grouping.sample(noise, 0.7)[0].detach(), expected, rtol=1e-6)


def test_straight_through_is_one_hot_with_the_relaxed_gradient():
    logits, noise = [[0.3, -1.0, 0.2], [0.0, 0.1, 0.0]], gumbel_noise((2, 3), 0, 0)
    hard, soft = filled(logits, sampler="straight_through"), filled(logits)
    z_hard, z_soft = hard.sample(noise, 0.5), soft.sample(noise, 0.5)
    assert sorted(z_hard.detach().flatten().tolist()) == [0, 0, 0, 0, 1, 1]
    assert torch.equal(z_hard.argmax(1), z_soft.argmax(1))
    losses = torch.rand(2, 3)
    torch.testing.assert_close(
        hard.logit_gradient(z_hard, losses), soft.logit_gradient(z_soft, losses)
    )


def test_logit_gradient_against_finite_differences():
    logits = [[0.3, -1.0, 0.2], [0.5, 0.1, 0.0]]
    alive = [[True, True, False], [True, True, True]]
    noise, losses = gumbel_noise((2, 3), 1, 2), torch.rand(2, 3)
    grouping = filled(logits, alive)
    gradient = grouping.logit_gradient(grouping.sample(noise, 2.0), losses)
    for row in range(2):
        for column in range(3):
            values = []
            for step in (-1e-2, 1e-2):
                moved = [list(r) for r in logits]
                moved[row][column] += step
                z = filled(moved, alive).sample(noise, 2.0).detach()
                values.append(float((z * losses).sum()))
            slope = (values[1] - values[0]) / 2e-2
            assert float(gradient[row, column]) == pytest.approx(slope, abs=2e-5)
    assert float(gradient[0, 2]) == 0.0


def test_gradient_ignores_losses_of_dead_heads_and_keeps_no_graph():
    grouping = filled([[0.0, 0.0]], [[True, False]])
    losses = torch.tensor([[1.0, float("nan")]], requires_grad=True)
    gradient = grouping.logit_gradient(grouping.sample(torch.zeros(1, 2), 1.0), losses)
    assert gradient.tolist() == [[0.0, 0.0]]
    assert not gradient.requires_grad and losses.grad is None and grouping.logits.grad is None


def test_choice_takes_the_lowest_of_equals_and_only_live_branches():
    grouping = filled(
        [[1.0, 1.0, 1.0], [0.0, 5.0, 1.0]], [[False, True, True], [True, False, True]]
    )
    assert grouping.choice().tolist() == [1, 2]
    assert grouping.heads() == [(0, 1), (0, 2), (1, 0), (1, 2)]


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
    with pytest.raises(ValueError, match=r"grouping\.sampler is 'softmax', must be one of gumbel"):
        Grouping(1, 2, "softmax")
    with pytest.raises(ValueError, match="tau is 0, must be above 0"):
        Grouping(1, 2).sample(torch.zeros(1, 2), 0)
