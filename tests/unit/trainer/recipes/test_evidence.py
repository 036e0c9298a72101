"""The recipe `evidence`: warm-up, groups from planted statistics, the posterior of the evidence."""
# Legend: N tasks, K branches, F features.

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from model.grouping.group_start import GroupStart
from model.grouping.grouping import Grouping
from model.grouping.head_sampling import HeadSample
from trainer.config.loading import parse_config
from trainer.errors import NonFiniteLossError, UserError
from trainer.recipes.evidence import EvidenceGroups
from trainer.recipes.learner import LearnerInput

N, K, STEPS = 12, 5, 200
WARM, FINISH = 20, 160
HELD = WARM + 70
GROUPS = [n % 2 for n in range(N)]


def learner(
    steps=STEPS, num_tasks=N, num_branches=K, start=0.2, finish=0.8, threshold=0.05, **affinity
):
    tree = {
        "run": {"out": "out", "steps": steps},
        "data": {"shards": "s", "image_size": [8, 8], "global_batch": 1},
        "model": {"encoder": {"name": "residual64"}, "branches": num_branches},
        "grouping": {"recipe": "evidence", **affinity},
        "pruning": {"begin": start, "end": finish, "every": 1, "threshold": threshold},
    }
    config = parse_config(tree, "test")
    grouping = Grouping(num_tasks, num_branches)
    return EvidenceGroups(grouping, config, steps, torch.device("cpu"), 0)


def statistics(num_tasks=N, num_branches=K, seed=0):
    """Of one binary task each, which need two features of their group, as each branch has them."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.zeros(num_branches, num_tasks, 4)
    needed = 1 + 0.2 * torch.randn(num_tasks, 2, generator=torch.Generator().manual_seed(9))
    for group in (0, 2):
        maps = torch.randn(num_branches, 2, 2, generator=generator)
        tasks = [task for task in range(num_tasks) if 2 * (task % 2) == group]
        rows[:, tasks, group : group + 2] = needed[tasks] @ maps
    return {
        "count": torch.ones(num_branches),
        "features": torch.zeros(num_branches, 1, 4),
        "residuals": torch.zeros(num_branches, num_tasks, 1),
        "products": rows,
        "second": torch.eye(4).expand(num_branches, 4, 4).clone(),
    }


def inputs(step, gradient, losses):
    """Of a step that computes all heads."""
    shape = tuple(losses.shape)
    sample = HeadSample.all_heads(np.ndindex(shape), shape, torch.device("cpu"))
    return LearnerInput(step, gradient, losses, lr_factor=1.0, head_sample=sample)


def learn(own, given):
    """One step of the loop, without its pruning."""
    own.record_losses(given)
    own.update(given)


def advance(own, first, last, losses=None):
    """The steps of the loop from `first` to `last`, as far as the learner sees them."""
    shape = own.grouping.logits.shape
    for step in range(first, last):
        if own.collects(step):
            own.collect(statistics(*shape), torch.arange(shape[0]))
        given = torch.ones(shape) if losses is None else losses(step)
        learn(own, inputs(step, torch.full(shape, torch.nan), given))
        own.prune(step + 1)


def started(**options):
    """A learner at the end of its warm-up, before anything is switched off."""
    own = learner(**options)
    advance(own, 0, WARM - 1)
    learn(own, inputs(WARM - 1, torch.zeros(N, K), torch.ones(N, K)))
    return own


@pytest.fixture(autouse=True)
def _one_process(forget_accelerate):
    forget_accelerate()


def test_times():
    own = learner()
    assert (own.warmup_end, own.start_step, own.finish_step) == (WARM, 40, FINISH)
    assert learner(start=0.0).start_step == WARM
    assert learner(warmup=0.9).finish_step == 181


def test_weights_are_uniform_in_the_warm_up_whatever_the_losses():
    own = learner()
    advance(own, 0, WARM - 1, lambda step: torch.rand(N, K) * step)
    for step in (0, WARM - 1):
        assert torch.equal(own.weights(step, 7), torch.full((N, K), 1 / K))
    assert own.updates == 0 and len(own.grouping.heads()) == N * K


def test_signals_are_wanted_after_the_first_quarter_of_the_warm_up():
    wanted = [step for step in range(STEPS) if learner().collects(step)]
    assert wanted == list(range(5, WARM))


@given(steps=st.integers(1, 200_000), warmup=st.floats(0.001, 0.999))
@settings(max_examples=40, deadline=None)
def test_at_most_two_hundred_steps_of_signals_spread_over_the_warm_up(steps, warmup):
    own = learner(steps=steps, warmup=warmup)
    wanted = [step for step in range(own.warmup_end + 5) if own.collects(step)]
    assert 1 <= len(wanted) <= 200 and max(wanted) < own.warmup_end <= steps
    assert min(wanted) <= 0.25 * own.warmup_end
    assert len(set(np.diff(wanted))) <= 1
    assert own.warmup_end - max(wanted) <= max(1, np.diff(wanted).max(initial=0))


def test_signals_of_micro_batches_and_steps_are_added_to_chunks_in_turn():
    own = learner()
    parts = [statistics(seed=seed) for seed in range(19)]
    for part in parts:
        own.collect(part, torch.arange(N))
    for name in parts[0]:
        found = own.tensors()[f"gradient_statistics.{name}"]
        for chunk, value in enumerate(found):
            expected = sum(part[name] for part in parts[chunk::8])
            torch.testing.assert_close(value, expected)


def test_the_first_groups_are_returned_once_after_the_warm_up():
    own = learner()
    advance(own, 0, WARM - 1)
    assert own.take_group_start() is None and own.firmness is None
    own = started()
    start, same = own.take_group_start(), np.equal.outer(GROUPS, GROUPS)
    assert start.affinity.shape == (N, N)
    assert start.affinity[same].min() > start.affinity[~same].max()
    assert start.agreement == 1.0 and np.array_equal(start.co_assignment, same)
    assert own.take_group_start() is None
    assert own.firmness.tolist() == [1.0] * (N + 1)


def test_groups_start_on_the_branches_that_suit_them():
    own = learner()
    losses = torch.ones(N, K)
    losses[[n for n in range(N) if GROUPS[n] == 0], 3] = 0.9
    losses[[n for n in range(N) if GROUPS[n] == 1], 1] = 0.8
    losses[4, 2] = 0.5  # one task that would rather be elsewhere
    advance(own, 0, WARM, lambda _: losses)
    assert own.weights(WARM, 7).argmax(dim=1).tolist() == [[3, 1][group] for group in GROUPS]


def test_groups_start_together_and_surplus_branches_go():
    own = started()
    found = own.weights(WARM, 7)
    branch = found.argmax(dim=1).tolist()
    assert branch in (GROUPS, [1 - group for group in GROUPS])
    torch.testing.assert_close(found.amax(dim=1), torch.full((N,), 0.97))
    torch.testing.assert_close(found[:, :2].sum(dim=1), torch.ones(N))
    assert not found[:, 2:].any()
    assert own.prunes_at(WARM)
    assert sorted(own.prune(WARM)) == [(n, k) for n in range(N) for k in (2, 3, 4)]
    assert own.drop_empty_branches() == (0, 1)
    assert torch.equal(own.weights(WARM, 7), found[:, :2])


@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("start", [0.0, 0.2])
def test_surplus_branches_go_whatever_the_rules_of_pruning(start, threshold):
    own = started(start=start, threshold=threshold)
    own.prune(WARM)
    assert own.grouping.alive.any(dim=0).tolist() == [True, True, False, False, False]
    assert bool(own.grouping.alive[:, :2].all())


def test_surplus_branches_go_where_the_time_is_too_short_for_anything_else():
    own = started(steps=25, warmup=0.8, threshold=0.0)
    assert (own.warmup_end, own.start_step, own.finish_step) == (WARM, WARM, WARM + 1)
    own.prune(WARM)
    assert own.grouping.alive.any(dim=0).tolist() == [True, True, False, False, False]
    assert not own.finished


def test_as_many_groups_as_branches_where_that_is_asked_for():
    own = started(num_groups="all", initial_probability=0.6)
    weights = own.weights(WARM, 7)
    torch.testing.assert_close(weights.amax(dim=1), torch.full((N,), 0.6))
    assert len(set(weights.argmax(dim=1).tolist())) == K
    assert not own.prune(WARM)


def test_weights_are_the_probabilities_at_any_time():
    """A head that is still compared has to train: sharpened weights would let it fall behind."""
    own = started(initial_probability=0.6)
    for step in (WARM, (WARM + FINISH) // 2, FINISH):
        assert own.temperature(step) == 1.0
        assert torch.equal(own.weights(step, 7), own.grouping.probabilities())
    assert own.weights(FINISH, 7).amax(dim=1).allclose(torch.tensor(0.6))


def test_tasks_with_a_firm_group_stay_in_it_for_half_of_the_time():
    own = started()
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
    own = started(start=0.9, finish=0.9, num_groups="all", initial_probability=first)
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
    own = started()
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
    own = started()
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


def test_the_scale_of_a_tasks_losses_does_not_matter():
    own, scaled = started(), started()
    rng = torch.Generator().manual_seed(0)
    for step in range(WARM, HELD + 5):
        losses = torch.rand(N, K, generator=rng) + 0.5
        learn(own, inputs(step, torch.zeros(N, K), losses))
        other = losses * torch.logspace(-4, 4, N)[:, None]
        learn(scaled, inputs(step, torch.zeros(N, K), other))
    found = [each.grouping.probabilities() for each in (own, scaled)]
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-4)


def test_heads_fall_by_evidence_and_not_by_the_prior():
    own = started(threshold=0.05)
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
    return started()


def test_a_task_whose_group_is_not_firm_starts_on_all_branches(monkeypatch):
    own = started_with_doubts(monkeypatch, [0, 7])
    own.prune(WARM)
    weights = own.weights(WARM, 7)[:, :2]
    for task in range(N):
        expected = 0.5 if task in (0, 7) else 0.97
        assert weights[task].amax().item() == pytest.approx(expected)


def test_a_task_whose_group_is_not_firm_follows_the_evidence_at_once(monkeypatch):
    own = started_with_doubts(monkeypatch, [0])
    own.prune(WARM)
    branch = own.weights(WARM, 7).argmax(dim=1)
    losses = torch.ones(N, K)
    losses[torch.arange(N), 1 - branch] = 0.5  # all of them would rather be on the other one
    rng = torch.Generator().manual_seed(0)
    advance(own, WARM, HELD, lambda _: losses + 0.1 * torch.rand(N, K, generator=rng))
    assert own.grouping.heads()[0] == (0, 1 - branch[0])
    assert torch.equal(own.weights(HELD, 7).argmax(dim=1)[1:], branch[1:])


def test_a_task_moves_to_the_branch_where_its_loss_is_lower():
    own = started()
    branch = own.weights(WARM, 7).argmax(dim=1)
    losses = torch.ones(N, K)
    losses[torch.arange(N), branch] = 0.9
    losses[5] = 1.0
    losses[5, 1 - branch[5]] = 0.5  # the affinities were wrong about this one
    rng = torch.Generator().manual_seed(0)
    advance(own, WARM, FINISH, lambda _: losses + 0.3 * torch.rand(N, K, generator=rng))
    assert own.finished
    expected = branch.clone()
    expected[5] = 1 - branch[5]
    assert own.chosen_heads() == list(enumerate(expected.tolist()))


def test_every_task_has_one_head_at_the_finish_even_if_all_losses_are_equal():
    own = learner()
    advance(own, 0, FINISH - 1)
    assert not own.finished
    advance(own, FINISH - 1, FINISH)
    assert own.finished and own.grouping.alive.sum(dim=1).tolist() == [1] * N
    logits = own.grouping.logits.clone()
    advance(own, FINISH, STEPS)
    assert torch.equal(own.grouping.logits, logits)


@given(
    steps=st.integers(1, 40),
    warmup=st.floats(0.01, 0.99),
    start=st.floats(0, 1),
    finish=st.floats(0, 1),
    num_branches=st.integers(1, 4),
    num_tasks=st.integers(1, 6),
)
@settings(max_examples=40, deadline=None)
def test_every_run_ends_with_one_head_for_each_task(
    steps, warmup, start, finish, num_branches, num_tasks
):
    own = learner(steps, num_tasks, num_branches, min(start, finish), finish, 0.1, warmup=warmup)
    generator = torch.Generator().manual_seed(0)
    advance(own, 0, steps, lambda _: torch.rand(num_tasks, num_branches, generator=generator))
    assert own.finished and len(own.grouping.heads()) == num_tasks
    assert own.finish_step <= steps


def test_more_branches_than_tasks_and_only_one():
    own = learner(num_tasks=3, num_branches=5)
    advance(own, 0, WARM)
    assert own.grouping.heads() == [(n, k) for n in range(3) for k in range(3)]
    one = learner(num_branches=1, threshold=0.0)
    assert one.finished and not any(one.collects(step) for step in range(STEPS))
    advance(one, 0, STEPS)
    assert one.weights(STEPS, 7).tolist() == [[1.0]] * N


def assert_same(found, expected):
    assert found.updates == expected.updates
    assert found.tensors().keys() == expected.tensors().keys()
    for name, value in expected.tensors().items():
        torch.testing.assert_close(
            found.tensors()[name], value, rtol=0, atol=0, equal_nan=True, msg=name
        )


@pytest.mark.parametrize("stop", [3, 10, WARM - 1, WARM, HELD - 30, HELD + 20, FINISH, STEPS])
def test_continued_from_any_step(stop):
    def losses(step):
        return torch.rand(N, K, generator=torch.Generator().manual_seed(step)) + 0.1

    whole, half = learner(), learner()
    advance(half, 0, stop, losses)
    tensors = {name: value.clone() for name, value in half.tensors().items()}
    assert any(name.startswith("gradient_statistics.") for name in tensors) == (5 < stop < WARM)
    advance(whole, 0, STEPS, losses)
    continued = learner()
    continued.load(tensors, half.updates)
    assert_same(continued, half)
    advance(continued, stop, STEPS, losses)
    assert_same(continued, whole)


def test_a_run_that_diverges_in_the_warm_up_says_so(rooms_config, train_here):
    config = rooms_config(
        "grouping.recipe=evidence", "optim.lr=1e30", "optim.max_grad_norm=null", "log.every=30"
    )
    with pytest.raises(NonFiniteLossError, match="became NaN or infinite in step"):
        train_here(config)


@pytest.mark.parametrize("key", ["sampler=diagonal", "logits_init=diagonal", "lr=0.1"])
def test_the_recipe_has_neither_sampler_nor_logits_of_the_published_one(key, rooms_config):
    config = rooms_config("grouping.recipe=evidence")
    grouping = EvidenceGroups.new_grouping(config, 5)
    assert torch.equal(grouping.probabilities(), torch.full((5, 3), 1 / 3))
    with pytest.raises(UserError, match=r"grouping\.\w+: unknown key of recipe 'evidence'"):
        rooms_config("grouping.recipe=evidence", f"grouping.{key}")
