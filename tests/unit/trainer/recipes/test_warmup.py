"""Recipes with a warm-up: groups from planted statistics, pruning, and continued runs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmtg.plugins import RECIPES
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
)
from trainer.errors import NonFiniteLossError, UserError

HELD = WARM + 70  # from here on tasks move with each of the recipes


@pytest.fixture(params=["evidence", "affinity"], scope="module")
def recipe(request):
    return request.param


@pytest.fixture(autouse=True)
def _one_process(forget_accelerate):
    forget_accelerate()


def test_weights_are_uniform_in_the_warm_up_whatever_the_losses(recipe):
    own = learner(recipe)
    advance(own, 0, WARM - 1, lambda step: torch.rand(N, K) * step)
    for step in (0, WARM - 1):
        assert torch.equal(own.weights(step, 7), torch.full((N, K), 1 / K))
    assert own.updates == 0 and len(own.grouping.heads()) == N * K


def test_signals_are_wanted_after_the_first_quarter_of_the_warm_up(recipe):
    wanted = [step for step in range(STEPS) if learner(recipe).collects(step)]
    assert wanted == list(range(5, WARM))


@given(steps=st.integers(1, 200_000), warmup=st.floats(0.001, 0.999))
@settings(max_examples=40, deadline=None)
def test_at_most_two_hundred_steps_of_signals_spread_over_the_warm_up(recipe, steps, warmup):
    own = learner(recipe, steps=steps, warmup=warmup)
    wanted = [step for step in range(own.warmup_end + 5) if own.collects(step)]
    assert 1 <= len(wanted) <= 200 and max(wanted) < own.warmup_end <= steps
    assert min(wanted) <= 0.25 * own.warmup_end
    assert len(set(np.diff(wanted))) <= 1
    assert own.warmup_end - max(wanted) <= max(1, np.diff(wanted).max(initial=0))


def test_groups_start_together_and_surplus_branches_go(recipe):
    own = started(recipe)
    found = own.weights(WARM, 7)
    branch = found.argmax(dim=1).tolist()
    assert branch in (GROUPS, [1 - group for group in GROUPS])
    torch.testing.assert_close(
        found.amax(dim=1), torch.full((N,), {"evidence": 0.97, "affinity": 0.75}[recipe])
    )
    torch.testing.assert_close(found[:, :2].sum(dim=1), torch.ones(N))
    assert not found[:, 2:].any()
    assert own.prunes_at(WARM)
    assert sorted(own.prune(WARM)) == [(n, k) for n in range(N) for k in (2, 3, 4)]
    assert own.drop_empty_branches() == (0, 1)
    assert torch.equal(own.weights(WARM, 7), found[:, :2])


@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("start", [0.0, 0.2])
def test_surplus_branches_go_whatever_the_rules_of_pruning(recipe, start, threshold):
    own = started(recipe, start=start, threshold=threshold)
    own.prune(WARM)
    assert own.grouping.alive.any(dim=0).tolist() == [True, True, False, False, False]
    assert bool(own.grouping.alive[:, :2].all())


def test_surplus_branches_go_where_the_time_is_too_short_for_anything_else(recipe):
    own = started(recipe, steps=25, warmup=0.8, threshold=0.0)
    assert (own.warmup_end, own.start_step, own.finish_step) == (WARM, WARM, WARM + 1)
    own.prune(WARM)
    assert own.grouping.alive.any(dim=0).tolist() == [True, True, False, False, False]
    assert not own.finished


def test_as_many_groups_as_branches_where_that_is_asked_for(recipe):
    own = started(recipe, num_groups="all", initial_probability=0.6)
    weights = own.weights(WARM, 7)
    torch.testing.assert_close(weights.amax(dim=1), torch.full((N,), 0.6))
    assert len(set(weights.argmax(dim=1).tolist())) == K
    assert not own.prune(WARM)


def test_a_warm_up_without_any_step_says_so(recipe):
    own = learner(recipe)
    for step in range(WARM - 1):
        own.leave_out(step)
    with pytest.raises(UserError, match=r"grouping\.warmup: every step .* was left out"):
        own.leave_out(WARM - 1)


def test_the_scale_of_a_tasks_losses_does_not_matter(recipe):
    own, scaled = started(recipe), started(recipe)
    rng = torch.Generator().manual_seed(0)
    for step in range(WARM, HELD + 5):
        losses = torch.rand(N, K, generator=rng) + 0.5
        learn(own, inputs(step, torch.zeros(N, K), losses))
        other = losses * torch.logspace(-5, 5, N)[:, None]
        learn(scaled, inputs(step, torch.zeros(N, K), other))
    found = [each.grouping.probabilities() for each in (own, scaled)]
    rtol = {"evidence": 1e-2, "affinity": 1e-3}[recipe]  # squares of standard errors round more
    torch.testing.assert_close(*found, rtol=rtol, atol=0.01 * rtol)


def test_a_task_moves_to_the_branch_where_its_loss_is_lower(recipe):
    own = started(recipe)
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


def test_every_task_has_one_head_at_the_finish_even_if_all_losses_are_equal(recipe):
    own = learner(recipe)
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
    recipe, steps, warmup, start, finish, num_branches, num_tasks
):
    own = learner(
        recipe, steps, num_tasks, num_branches, min(start, finish), finish, 0.1, warmup=warmup
    )
    generator = torch.Generator().manual_seed(0)
    advance(own, 0, steps, lambda _: torch.rand(num_tasks, num_branches, generator=generator))
    assert own.finished and len(own.grouping.heads()) == num_tasks
    assert own.finish_step <= steps and own.temperature(steps) > 0


def test_more_branches_than_tasks_and_only_one(recipe):
    own = learner(recipe, num_tasks=3, num_branches=5)
    advance(own, 0, WARM)
    assert own.grouping.heads() == [(n, k) for n in range(3) for k in range(3)]
    one = learner(recipe, num_branches=1, threshold=0.0)
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


@pytest.mark.parametrize(
    "stop", [3, 10, WARM - 1, WARM, WARM + 12, HELD - 30, HELD + 20, FINISH, STEPS]
)
def test_continued_from_any_step(recipe, stop):
    def losses(step):
        return torch.rand(N, K, generator=torch.Generator().manual_seed(step)) + 0.1

    whole, half = learner(recipe), learner(recipe)
    advance(half, 0, stop, losses)
    tensors = {name: value.clone() for name, value in half.tensors().items()}
    assert any(name.startswith("gradient_statistics.") for name in tensors) == (5 < stop < WARM)
    advance(whole, 0, STEPS, losses)
    continued = learner(recipe)
    continued.load(tensors, half.updates)
    assert_same(continued, half)
    advance(continued, stop, STEPS, losses)
    assert_same(continued, whole)


def test_a_run_that_diverges_in_the_warm_up_says_so(recipe, rooms_config, train_here):
    config = rooms_config(
        f"grouping.recipe={recipe}", "optim.lr=1e30", "optim.max_grad_norm=null", "log.every=30"
    )
    with pytest.raises(NonFiniteLossError, match="became NaN or infinite in step"):
        train_here(config)


@pytest.mark.parametrize("key", ["sampler=diagonal", "logits_init=diagonal", "lr=0.1"])
def test_the_recipe_has_neither_sampler_nor_logits_of_the_published_one(recipe, key, rooms_config):
    config = rooms_config(f"grouping.recipe={recipe}")
    grouping = RECIPES[recipe].new_grouping(config, 5)
    assert torch.equal(grouping.probabilities(), torch.full((5, 3), 1 / 3))
    with pytest.raises(UserError, match=rf"grouping\.\w+: unknown key of recipe '{recipe}'"):
        rooms_config(f"grouping.recipe={recipe}", f"grouping.{key}")
