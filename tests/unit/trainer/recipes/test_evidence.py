"""The recipe `evidence`: warm-up, groups from planted statistics, the posterior of the evidence."""
# Legend: N tasks, K branches.

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import softmax

from model.grouping.group_start import GroupStart
from tests.warmups import (
    FINISH,
    GROUPS,
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
from trainer.recipes import evidence

HELD = WARM + 70


@pytest.fixture(autouse=True)
def _one_process(forget_accelerate):
    forget_accelerate()


def test_times():
    own = learner("evidence")
    assert (own.warmup_end, own.start_step, own.finish_step) == (WARM, 40, FINISH)
    assert learner("evidence", start=0.0).start_step == WARM
    assert learner("evidence", warmup=0.9).finish_step == 181


def test_signals_of_micro_batches_and_steps_are_added_to_chunks_in_turn():
    own = learner("evidence")
    parts = [statistics(seed=seed) for seed in range(19)]
    for part in parts:
        own.collect(part, torch.arange(N))
    for name in parts[0]:
        found = own.tensors()[f"gradient_statistics.{name}"]
        for chunk, value in enumerate(found):
            expected = sum(part[name] for part in parts[chunk::8])
            torch.testing.assert_close(value, expected)


def test_the_first_groups_are_returned_once_after_the_warm_up():
    own = learner("evidence")
    advance(own, 0, WARM - 1)
    assert own.take_group_start() is None and own.firmness is None
    own = started("evidence")
    start, same = own.take_group_start(), np.equal.outer(GROUPS, GROUPS)
    assert start.affinity.shape == (N, N)
    assert start.affinity[same].min() > start.affinity[~same].max()
    assert start.agreement == 1.0 and np.array_equal(start.co_assignment, same)
    assert own.take_group_start() is None
    assert own.firmness.tolist() == [1.0] * (N + 1)


def test_groups_start_on_the_branches_that_suit_them():
    own = learner("evidence")
    losses = torch.ones(N, K)
    losses[[n for n in range(N) if GROUPS[n] == 0], 3] = 0.9
    losses[[n for n in range(N) if GROUPS[n] == 1], 1] = 0.8
    losses[4, 2] = 0.5  # one task that would rather be elsewhere
    advance(own, 0, WARM, lambda _: losses)
    assert own.weights(WARM, 7).argmax(dim=1).tolist() == [[3, 1][group] for group in GROUPS]


def test_weights_are_the_probabilities_at_any_time():
    """A head that is still compared has to train: sharpened weights would let it fall behind."""
    own = started("evidence", initial_probability=0.6)
    for step in (WARM, (WARM + FINISH) // 2, FINISH):
        assert own.temperature(step) == 1.0
        assert torch.equal(own.weights(step, 7), own.grouping.probabilities())
    assert own.weights(FINISH, 7).amax(dim=1).allclose(torch.tensor(0.6))


def test_tasks_stay_where_they_start_for_half_of_the_time():
    own = started("evidence")
    before = own.grouping.probabilities()
    losses = torch.rand(N, K, generator=torch.Generator().manual_seed(0))
    for step in range(WARM, HELD):
        learn(own, inputs(step, torch.zeros(N, K), losses + 0.01 * torch.rand(N, K)))
    assert torch.equal(own.grouping.probabilities(), before)
    learn(own, inputs(HELD, torch.zeros(N, K), losses))
    assert not torch.equal(own.grouping.probabilities(), before)


def test_posterior_against_numpy():
    """log prior - sign(z) z^2 / 2 with the z of the weighted paired differences to the start."""
    first = 0.999  # so that no task moves and is compared with another head from then on
    own = started("evidence", start=0.9, finish=0.9, num_groups="all", initial_probability=first)
    start = own.weights(WARM, 7).argmax(dim=1).numpy()
    before = own.grouping.probabilities()
    generator, history = np.random.default_rng(0), []
    for step in range(WARM, HELD + 30):
        losses = generator.uniform(0.5, 1.5, size=(N, K)).astype(np.float32)
        losses[3] = np.nan  # never has a label
        history.append(losses)
        learn(own, inputs(step, torch.full((N, K), torch.nan), torch.tensor(losses)))
    history = np.array(history)
    weight = np.ones(len(history))
    for step in range(1, len(history)):  # what is left of the earlier steps' weights
        weight[:step] *= max(0.0, 1 - 5 / (step + 5))
    prior = np.full(K, np.log((1 - first) / (K - 1)))
    found = own.grouping.probabilities()
    for n in (n for n in range(N) if n != 3):
        difference = history[:, n] - history[:, n, start[n], None]
        mean = weight @ difference / weight.sum()
        steps = weight.sum() ** 2 / (weight**2).sum()
        error = np.sqrt(weight**2 @ (difference - mean) ** 2) / weight.sum()
        error *= np.sqrt(steps / (steps - 1))
        z = np.divide(mean, error, out=np.zeros(K), where=error > 0)
        log = prior - np.sign(z) * z**2 / 2
        log[start[n]] = np.log(first)
        np.testing.assert_allclose(found[n], softmax(log), rtol=2e-2, atol=1e-4)
    assert torch.equal(found[3], before[3]), "without losses a task stays where it started"
    assert own.updates == HELD + 30 - WARM


def test_labels_weigh_the_evidence():
    """Of two tasks with the same differences, one in steps with many labels and one with few."""
    own = started("evidence")
    own.prune(WARM)
    branch = own.weights(WARM, 7).argmax(dim=1)
    rng = torch.Generator().manual_seed(0)
    for step in range(WARM, HELD + 20):
        losses, counts = torch.ones(N, K), torch.ones(N)
        good = step % 2 == 0
        for task in (0, 1):  # the other branch is better in even steps and worse in odd ones
            losses[task, 1 - branch[task]] = 0.5 if good else 1.5
            losses[task] += 0.01 * torch.rand(K, generator=rng)
        counts[0], counts[1] = (30, 1) if good else (1, 30)
        given = inputs(step, torch.zeros(N, K), losses)
        learn(own, dataclasses.replace(given, label_counts=counts))
    moved = own.grouping.probabilities().argmax(dim=1) != branch
    assert moved.tolist() == [True] + [False] * (N - 1)


def test_posterior_over_the_live_heads_only():
    own = started("evidence")
    own.prune(WARM)
    branch = own.weights(WARM, 7).argmax(dim=1)
    losses = torch.zeros(N, K)  # of heads that are not computed nothing may matter
    losses[:, :2] = 1.0
    rng = torch.Generator().manual_seed(0)
    for step in range(WARM, HELD + 1):
        noise = 0.1 * torch.rand(N, K, generator=rng)
        learn(own, inputs(step, torch.zeros(N, K), losses + noise))
    assert torch.equal(own.grouping.probabilities().argmax(dim=1), branch)
    assert not own.weights(HELD + 1, 7)[:, 2:].any()


def test_heads_fall_by_evidence_and_not_by_the_prior():
    own = started("evidence", threshold=0.05)
    own.prune(WARM)
    branch = own.weights(WARM, 7).argmax(dim=1)
    rng = torch.Generator().manual_seed(0)

    def losses(_):
        """Task 0 is clearly worse on its other branch, the others are as good on both."""
        values = 1 + 0.1 * torch.rand(N, K, generator=rng)
        values[0, 1 - branch[0]] += 1.0
        return values

    advance(own, WARM, HELD, losses)
    assert own.grouping.alive.sum(dim=1).tolist()[:2] == [1, 2]
    assert own.grouping.alive.sum() > 1.5 * N, "0.03 is below the threshold, but it is a prior"


def started_with_doubts(monkeypatch, doubtful):
    """A learner at the end of its warm-up, in which the groups of some tasks are not firm."""

    def firmness(start):
        return [0.79 if task in doubtful else 0.8 for task in range(len(start.labels))]

    monkeypatch.setattr(GroupStart, "firmness", property(firmness))
    return started("evidence")


def test_tasks_without_a_firm_group_make_the_groups_equal(monkeypatch):
    def first_groups_are_larger(*_, **__):
        labels = [0] * 8 + [1] * 4
        together = np.equal.outer(labels, labels) * 1.0
        together[5, 8:] = 0.4  # of the first group this one was most often with the second
        together[3, 8:] = 0.3
        return GroupStart(labels, np.eye(N), together, 1.0)

    monkeypatch.setattr(evidence, "find_groups", first_groups_are_larger)
    own = started_with_doubts(monkeypatch, [2, 3, 5])
    weights = own.weights(WARM, 7)
    torch.testing.assert_close(weights.amax(dim=1), torch.full((N,), 0.97))
    branch = weights.argmax(dim=1)
    assert (branch == branch[0]).tolist() == [n in {0, 1, 2, 4, 6, 7} for n in range(N)]


def test_a_task_without_a_firm_group_keeps_its_heads_for_half_of_the_time(monkeypatch):
    own = started_with_doubts(monkeypatch, [0])
    own.prune(WARM)
    branch = own.weights(WARM, 7).argmax(dim=1)
    rng = torch.Generator().manual_seed(0)

    def losses(_):
        values = 1 + 0.1 * torch.rand(N, K, generator=rng)
        values[torch.arange(N), 1 - branch] += 1.0
        return values

    advance(own, WARM, HELD, losses)
    assert own.grouping.alive.sum(dim=1).tolist() == [2] + [1] * (N - 1)
    advance(own, HELD, HELD + 1, losses)
    assert own.finished
