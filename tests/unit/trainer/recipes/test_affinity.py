"""The recipe `affinity`: warm-up, groups from planted statistics, the posterior of the losses."""
# Legend: N tasks, K branches.

import numpy as np
import pytest
import torch
from scipy.special import softmax

from tests.warmups import (
    FINISH,
    GROUPS,
    STEPS,
    WARM,
    K,
    N,
    advance,
    inputs,
    learn,
    learner,
    started,
    statistics,
)

HELD = WARM + 14


@pytest.fixture(autouse=True)
def _one_process(forget_accelerate):
    forget_accelerate()


def test_times():
    own = learner("affinity")
    assert (own.warmup_end, own.start_step, own.finish_step) == (WARM, 40, FINISH)
    assert learner("affinity", start=0.0).start_step == HELD, (
        "nothing falls while tasks stay where they start"
    )
    assert learner("affinity", warmup=0.9).finish_step == 181


def test_signals_of_micro_batches_and_steps_are_added():
    own = learner("affinity")
    first, second = statistics(seed=1), statistics(seed=2)
    own.collect(first, torch.arange(N))
    own.collect(second, torch.arange(N))
    for name, value in first.items():
        assert torch.equal(own.tensors()[f"gradient_statistics.{name}"], value + second[name])


def test_affinities_are_returned_once_after_the_warm_up():
    own = learner("affinity")
    advance(own, 0, WARM - 1)
    assert own.take_group_start() is None
    own = started("affinity")
    affinity, same = own.take_group_start().affinity, np.equal.outer(GROUPS, GROUPS)
    assert affinity.shape == (N, N) and affinity[same].min() > affinity[~same].max()
    assert own.take_group_start() is None


def test_temperature_falls_with_the_square_of_the_time_that_is_left():
    own = learner("affinity", temperature=0.2)
    assert own.temperature(0) == own.temperature(WARM) == pytest.approx(0.201)
    middle = (WARM + FINISH) // 2
    assert own.temperature(middle) == pytest.approx(0.2 / 4 + 1e-3)
    assert own.temperature(FINISH) == own.temperature(STEPS) == pytest.approx(1e-3)


def test_tasks_stay_where_they_start_for_a_while():
    own = started("affinity")
    before = own.weights(WARM, 7)
    losses = torch.rand(N, K, generator=torch.Generator().manual_seed(0))
    for step in range(WARM, HELD):
        learn(own, inputs(step, torch.zeros(N, K), losses))
    assert torch.equal(own.weights(HELD, 7), before)
    learn(own, inputs(HELD, torch.zeros(N, K), losses))
    assert not torch.equal(own.weights(HELD + 1, 7), before)


def test_posterior_against_numpy():
    """softmax(-average / (mean over live branches * temperature)); NaN keeps what there was."""
    own = started("affinity", loss_decay=0.9, start=0.9, finish=0.9, num_groups="all")
    generator = np.random.default_rng(0)
    average, before = np.zeros((N, K)), own.weights(WARM, 7)
    for step in range(WARM, HELD + 30):
        losses = generator.uniform(0.5, 1.5, size=(N, K)).astype(np.float32)
        losses[3] = np.nan  # never has a label
        if step % 3:
            losses[4] = np.nan  # now and then
        learn(own, inputs(step, torch.full((N, K), torch.nan), torch.tensor(losses)))
        keep = np.where(average == 0, 0.0, 0.9)  # the first loss of a task is its average
        mixed = keep * average + (1 - keep) * losses
        average = np.where(np.isnan(losses), average, mixed)
    temperature = 0.1 * (1 - (HELD + 30 - WARM) / (180 - WARM)) ** 2 + 1e-3
    seen = [n for n in range(N) if n != 3]
    expected = softmax(-average[seen] / average[seen].mean(axis=1, keepdims=True) / temperature, 1)
    found = own.weights(HELD + 30, 7)
    np.testing.assert_allclose(found[seen], expected, rtol=1e-3, atol=1e-5)
    assert torch.equal(found[3], before[3]), "without losses a task stays where it started"
    assert own.updates == HELD + 30 - WARM
    assert float(own.grouping.logits.detach().max()) == 0.0


def test_a_loss_of_exactly_zero_counts_as_seen():
    """The branch without any loss is the best one, and not one that was never computed."""
    own = started("affinity", start=0.9, finish=0.9, num_groups="all")
    losses = torch.ones(N, K)
    losses[:, 2] = 0.0
    for step in range(WARM, HELD + 10):
        learn(own, inputs(step, torch.zeros(N, K), losses))
    assert own.weights(HELD + 10, 7).argmax(dim=1).tolist() == [2] * N


def test_posterior_over_the_live_heads_only():
    own = started("affinity")
    own.prune(WARM)
    losses = torch.full((N, K), 1e6)  # of heads that are not computed nothing may matter
    losses[:, :2] = torch.tensor([1.0, 1.1])
    for step in range(WARM, HELD + 1):
        learn(own, inputs(step, torch.zeros(N, K), losses))
    expected = softmax(-np.array([1.0, 1.1]) / 1.05 / own.temperature(HELD + 1))
    weights = own.weights(HELD + 1, 7)
    np.testing.assert_allclose(weights[:, :2], np.tile(expected, (N, 1)), rtol=1e-3)
    assert not weights[:, 2:].any()
