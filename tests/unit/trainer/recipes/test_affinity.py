"""The recipe `affinity`: warm-up, groups from planted statistics, the posterior of the losses."""
# Legend: N tasks, K branches, F features.

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from model.grouping.grouping import Grouping
from model.grouping.head_sampling import HeadSample
from trainer.config.loading import parse_config
from trainer.errors import NonFiniteLossError, UserError
from trainer.recipes.affinity import AffinityGroups
from trainer.recipes.learner import LearnerInput

N, K, STEPS = 12, 5, 200
WARM, FINISH = 20, 160
HELD = WARM + 14
GROUPS = [n % 2 for n in range(N)]


def learner(
    steps=STEPS, num_tasks=N, num_branches=K, start=0.2, finish=0.8, threshold=0.05, **affinity
):
    tree = {
        "run": {"out": "out", "steps": steps},
        "data": {"shards": "s", "image_size": [8, 8], "global_batch": 1},
        "model": {"encoder": {"name": "residual64"}, "branches": num_branches},
        "grouping": {"recipe": "affinity", **affinity},
        "pruning": {"begin": start, "end": finish, "every": 1, "threshold": threshold},
    }
    config = parse_config(tree, "test")
    grouping = Grouping(num_tasks, num_branches)
    return AffinityGroups(grouping, config, steps, torch.device("cpu"), 0)


def statistics(num_tasks=N, num_branches=K, seed=0):
    """Of one binary task each, which need two features of their group."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.zeros(num_branches, num_tasks, 4)
    for task in range(num_tasks):
        group = 2 * (task % 2)
        rows[:, task, group : group + 2] = torch.randn(num_branches, 2, generator=generator)
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


def advance(own, first, last, losses=None):
    """The steps of the loop from `first` to `last`, as far as the learner sees them."""
    shape = own.grouping.logits.shape
    for step in range(first, last):
        if own.collects(step):
            own.collect(statistics(*shape), torch.arange(shape[0]))
        given = torch.ones(shape) if losses is None else losses(step)
        own.update(inputs(step, torch.full(shape, torch.nan), given))
        own.prune(step + 1)


def started(**options):
    """A learner at the end of its warm-up, before anything is switched off."""
    own = learner(**options)
    advance(own, 0, WARM - 1)
    own.update(inputs(WARM - 1, torch.zeros(N, K), torch.ones(N, K)))
    return own


@pytest.fixture(autouse=True)
def _one_process(forget_accelerate):
    forget_accelerate()


def test_times():
    own = learner()
    assert (own.warmup_end, own.start_step, own.finish_step) == (WARM, 40, FINISH)
    assert learner(start=0.0).start_step == HELD, "nothing falls while tasks stay where they start"
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


def test_signals_of_micro_batches_and_steps_are_added():
    own = learner()
    first, second = statistics(seed=1), statistics(seed=2)
    own.collect(first, torch.arange(N))
    own.collect(second, torch.arange(N))
    for name, value in first.items():
        assert torch.equal(own.tensors()[f"gradient_statistics.{name}"], value + second[name])


def test_affinities_are_returned_once_after_the_warm_up():
    own = learner()
    advance(own, 0, WARM - 1)
    assert own.take_group_start() is None
    own = started()
    affinity, same = own.take_group_start().affinity, np.equal.outer(GROUPS, GROUPS)
    assert affinity.shape == (N, N) and affinity[same].min() > affinity[~same].max()
    assert own.take_group_start() is None


def test_groups_start_together_and_surplus_branches_go():
    own = started()
    found = own.weights(WARM, 7)
    branch = found.argmax(dim=1).tolist()
    assert branch in (GROUPS, [1 - group for group in GROUPS])
    torch.testing.assert_close(found.amax(dim=1), torch.full((N,), 0.75))
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


def test_temperature_falls_with_the_square_of_the_time_that_is_left():
    own = learner(temperature=0.2)
    assert own.temperature(0) == own.temperature(WARM) == pytest.approx(0.201)
    middle = (WARM + FINISH) // 2
    assert own.temperature(middle) == pytest.approx(0.2 / 4 + 1e-3)
    assert own.temperature(FINISH) == own.temperature(STEPS) == pytest.approx(1e-3)


def test_tasks_stay_where_they_start_for_a_while():
    own = started()
    before = own.weights(WARM, 7)
    losses = torch.rand(N, K, generator=torch.Generator().manual_seed(0))
    for step in range(WARM, HELD):
        own.update(inputs(step, torch.zeros(N, K), losses))
    assert torch.equal(own.weights(HELD, 7), before)
    own.update(inputs(HELD, torch.zeros(N, K), losses))
    assert not torch.equal(own.weights(HELD + 1, 7), before)


def test_posterior_against_numpy():
    """softmax(-average / (mean over live branches * temperature)); NaN keeps what there was."""
    own = started(loss_decay=0.9, start=0.9, finish=0.9, num_groups="all")
    generator = np.random.default_rng(0)
    average, before = np.zeros((N, K)), own.weights(WARM, 7)
    for step in range(WARM, HELD + 30):
        losses = generator.uniform(0.5, 1.5, size=(N, K)).astype(np.float32)
        losses[3] = np.nan  # never has a label
        if step % 3:
            losses[4] = np.nan  # now and then
        own.update(inputs(step, torch.full((N, K), torch.nan), torch.tensor(losses)))
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
    own = started(start=0.9, finish=0.9, num_groups="all")
    losses = torch.ones(N, K)
    losses[:, 2] = 0.0
    for step in range(WARM, HELD + 10):
        own.update(inputs(step, torch.zeros(N, K), losses))
    assert own.weights(HELD + 10, 7).argmax(dim=1).tolist() == [2] * N


def test_posterior_over_the_live_heads_only():
    own = started()
    own.prune(WARM)
    losses = torch.full((N, K), 1e6)  # of heads that are not computed nothing may matter
    losses[:, :2] = torch.tensor([1.0, 1.1])
    for step in range(WARM, HELD + 1):
        own.update(inputs(step, torch.zeros(N, K), losses))
    expected = softmax(-np.array([1.0, 1.1]) / 1.05 / own.temperature(HELD + 1))
    weights = own.weights(HELD + 1, 7)
    np.testing.assert_allclose(weights[:, :2], np.tile(expected, (N, 1)), rtol=1e-3)
    assert not weights[:, 2:].any()


def test_the_scale_of_a_tasks_losses_does_not_matter():
    own, losses = started(), torch.rand(N, K) + 0.5
    scaled = started()
    for step in range(WARM, HELD + 5):
        own.update(inputs(step, torch.zeros(N, K), losses))
        other = losses * torch.logspace(-5, 5, N)[:, None]
        scaled.update(inputs(step, torch.zeros(N, K), other))
    found = [each.weights(HELD + 5, 7) for each in (own, scaled)]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def test_a_task_moves_to_the_branch_where_its_loss_is_lower():
    own = started()
    branch = own.weights(WARM, 7).argmax(dim=1)
    losses = torch.ones(N, K)
    losses[torch.arange(N), branch] = 0.9
    losses[5] = 1.0
    losses[5, 1 - branch[5]] = 0.5  # the affinities were wrong about this one
    advance(own, WARM, FINISH, lambda _: losses)
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
    assert own.finish_step <= steps and own.temperature(steps) > 0


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


@pytest.mark.parametrize("stop", [3, 10, WARM - 1, WARM, HELD - 2, HELD + 20, FINISH, STEPS])
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
        "grouping.recipe=affinity", "optim.lr=1e30", "optim.max_grad_norm=null", "log.every=30"
    )
    with pytest.raises(NonFiniteLossError, match="became NaN or infinite in step"):
        train_here(config)


@pytest.mark.parametrize("key", ["sampler=diagonal", "logits_init=diagonal", "lr=0.1"])
def test_the_recipe_has_neither_sampler_nor_logits_of_the_published_one(key, rooms_config):
    config = rooms_config("grouping.recipe=affinity")
    grouping = AffinityGroups.new_grouping(config, 5)
    assert torch.equal(grouping.probabilities(), torch.full((5, 3), 1 / 3))
    with pytest.raises(UserError, match=r"grouping\.\w+: unknown key of recipe 'affinity'"):
        rooms_config("grouping.recipe=affinity", f"grouping.{key}")
