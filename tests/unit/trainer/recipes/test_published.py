"""The published updates: noise, Adam, the entropy term, and what a checkpoint holds."""
# Legend: N tasks, K branches, S samples.

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import bernoulli, entropy

from model.grouping.grouping import Grouping
from model.grouping.head_sampling import HeadSample
from trainer.config.loading import parse_config
from trainer.engines.accelerator import make_accelerator
from trainer.recipes.learner import LearnerInput
from trainer.recipes.published import PublishedGroups, TemperatureSection, temperature
from trainer.session import start_session

N, K, STEPS = 4, 3, 100
LOSSES = torch.full((N, K), torch.nan)  # the published updates know the gradient only


def learner(rank=0, logits=None, sampler="gumbel", **grouping):
    tree = {
        "run": {"out": "out", "steps": STEPS, "seed": 3},
        "data": {"shards": "s", "image_size": [8, 8], "global_batch": 1},
        "model": {"encoder": {"name": "residual64"}, "branches": K},
        "grouping": {"recipe": "published", **grouping},
        "pruning": {"begin": 0.2, "end": 0.6, "every": 5, "threshold": 0.2},
    }
    own = Grouping(N, K, sampler=sampler)
    if logits is not None:
        with torch.no_grad():
            own.logits.copy_(torch.tensor(logits))
    return PublishedGroups(own, parse_config(tree, "test"), STEPS, torch.device("cpu"), rank)


def update(own, gradient, factor=1.0, step=0):
    sample = HeadSample.all_heads(np.ndindex(N, K), (N, K), torch.device("cpu"))
    own.update(LearnerInput(step, gradient, LOSSES, factor, sample))


def test_noise_of_every_rank_or_of_all():
    first, second = (learner(rank).weights(7, 5) for rank in (0, 1))
    assert not torch.equal(first, second)
    shared = [learner(rank, noise="shared").weights(7, 5) for rank in (0, 1)]
    assert torch.equal(*shared)
    assert torch.equal(first, shared[0])


def test_noise_is_a_function_of_the_step():
    assert torch.equal(learner().weights(7, 5), learner().weights(7, 5))
    assert not torch.equal(learner().weights(7, 5), learner().weights(8, 5))


def test_noise_for_every_sample():
    own = learner(sampler="gumbel_per_sample")
    weights = own.weights(7, 5).detach()
    assert weights.shape == (N, K, 5)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(N, 5))
    assert len({tuple(column) for column in weights[0].T.tolist()}) == 5


def test_temperature_anneals_until_the_finish():
    own = learner(temperature={"initial": 4, "final": 1, "shape": "linear"})
    assert own.temperature(0) == 4 and own.temperature(30) == 2.5
    assert own.temperature(60) == own.temperature(99) == 1


def test_learning_rate_factor_scales_the_update():
    """Adam's first update is the learning rate against the gradient's sign."""
    own = learner(lr=0.2)
    update(own, torch.tensor([[1.0, -2.0, 0.0]] * N), 0.5)
    expected = torch.tensor([[0.9, 1.1, 1.0]] * N)
    torch.testing.assert_close(own.grouping.logits.detach(), expected)
    assert own.updates == 1


@pytest.mark.parametrize("form", ["binary", "plain"])
def test_entropy_term_is_added_to_the_gradient(form):
    logits = np.random.default_rng(0).normal(size=(N, K))
    given = torch.linspace(-1, 1, N * K).view(N, K)
    own = learner(logits=logits.tolist(), entropy=0.7, entropy_form=form)
    update(own, given)

    def term(values):
        probabilities = softmax(values, axis=1)
        if form == "plain":
            return 0.7 * entropy(probabilities, axis=1).mean()
        return 0.7 * bernoulli(probabilities).entropy().sum(axis=1).mean()

    for cell in np.ndindex(N, K):
        step = np.zeros((N, K))
        step[cell] = 1e-4
        slope = (term(logits + step) - term(logits - step)) / 2e-4
        found = float(own.grouping.logits.grad[cell] - given[cell])
        assert found == pytest.approx(slope, abs=1e-5) and abs(slope) > 1e-5


@pytest.mark.parametrize(("weight", "moves"), [(5.0, "sharper"), (-5.0, "flatter")])
def test_sign_of_the_entropy_term(weight, moves):
    own = learner(logits=[[0.5, 0.0, 0.0]] * N, entropy=weight, lr=0.1)
    before = float(own.grouping.probabilities()[0, 0])
    update(own, torch.zeros(N, K))
    after = float(own.grouping.probabilities()[0, 0])
    assert (after > before) == (moves == "sharper")


def test_nothing_is_learned_once_every_task_has_one_head():
    own = learner()
    own.prune(60)
    assert own.finished
    update(own, torch.ones(N, K))
    assert own.updates == 0 and own.grouping.logits.unique().numel() == 1
    assert own.weights(61, 5).tolist() == [[1.0, 0.0, 0.0]] * N


def test_tensors_and_updates_restore_a_learner_exactly():
    torch.manual_seed(0)
    gradients = [torch.randn(N, K) for _ in range(6)]
    whole, half = learner(), learner()
    for gradient in gradients:
        update(whole, gradient)
    for gradient in gradients[:3]:
        update(half, gradient)
    restored = learner()
    restored.load(half.tensors(), half.updates)
    for gradient in gradients[3:]:
        update(restored, gradient)
    assert restored.updates == 6
    for name, value in whole.tensors().items():
        assert torch.equal(value, restored.tensors()[name]), name


def test_dropping_branches_keeps_what_is_left():
    torch.manual_seed(1)
    rows = [[2.0, -9.0, 1.0]] * N
    cut, whole = learner(logits=rows), learner(logits=rows)
    for own in (cut, whole):
        update(own, torch.ones(N, K))
        own.prune(20)
    assert cut.drop_empty_branches() == (0, 2)
    gradient = torch.randn(N, K)
    gradient[:, 1] = 0.0
    update(cut, gradient[:, [0, 2]])
    update(whole, gradient)
    assert cut.updates == whole.updates == 2
    assert cut.grouping.alive.shape == (N, 2) and bool(cut.grouping.alive.all())
    assert torch.equal(cut.grouping.logits, whole.grouping.logits[:, [0, 2]])
    probabilities = whole.grouping.probabilities()[:, [0, 2]]
    torch.testing.assert_close(cut.grouping.probabilities(), probabilities)


@pytest.mark.usefixtures("forget_accelerate")
def test_a_run_starts_with_the_configured_logits(rooms_config):
    options = (
        "grouping.logits_init=diagonal",
        "grouping.logits_value=2",
        "grouping.sampler=softmax",
    )
    config = rooms_config(*options, "grouping.temperature.initial=1")
    session = start_session(config, make_accelerator(config))
    session.log.close()
    assert isinstance(session.learner, PublishedGroups)
    assert session.learner.grouping.logits.tolist() == [[2, 0, 0], [0, 2, 0], [0, 0, 2]] * 2
    weights = session.learner.weights(0, 8).detach()
    expected = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2]] * 2).softmax(dim=1)
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("shape", ["linear", "exponential"])
def test_temperature_has_its_ends_and_stays_at_the_last(shape):
    section = TemperatureSection(initial=4.0, final=0.25, shape=shape)
    assert temperature(section, 0, 40) == 4.0
    assert temperature(section, 40, 40) == pytest.approx(0.25)
    assert temperature(section, 400, 40) == pytest.approx(0.25)


def test_temperature_in_the_middle():
    assert temperature(TemperatureSection(initial=4, final=1, shape="linear"), 5, 10) == 2.5
    assert temperature(TemperatureSection(initial=4, final=1), 5, 10) == pytest.approx(2.0)


def test_temperature_of_a_run_that_finishes_at_once():
    assert temperature(TemperatureSection(initial=4, final=1), 0, 0) == 4.0
    assert temperature(TemperatureSection(initial=4, final=1), 1, 0) == pytest.approx(1.0)


@given(
    step=st.integers(0, 500),
    ends=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)),
    shape=st.sampled_from(["linear", "exponential"]),
)
def test_temperature_moves_from_start_to_end_without_turning(step, ends, shape):
    section = TemperatureSection(initial=ends[0], final=ends[1], shape=shape)
    now, then = (temperature(section, s, 300) for s in (step, step + 1))
    assert min(ends) * (1 - 1e-9) <= now <= max(ends) * (1 + 1e-9)
    assert (then - now) * (ends[1] - ends[0]) >= -1e-9 * max(ends) ** 2


def test_new_logits_follow_the_section(rooms_config):
    config = rooms_config("grouping.logits_value=2", "grouping.sampler=straight_through")
    grouping = PublishedGroups.new_grouping(config, 5)
    assert grouping.logits.tolist() == [[2.0] * 3] * 5
    assert grouping.sampler == "straight_through"
    config = rooms_config("grouping.logits_init=diagonal", "grouping.logits_value=3")
    diagonal = PublishedGroups.new_grouping(config, 4)
    assert diagonal.logits.tolist() == [[3, 0, 0], [0, 3, 0], [0, 0, 3], [3, 0, 0]]
    options = (
        "grouping.logits_init=gaussian", "grouping.logits_value=0.5", "grouping.logits_noise=0.1",
    )  # fmt: skip
    one, same, other = (
        PublishedGroups.new_grouping(rooms_config(*options, f"run.seed={seed}"), 40).logits.detach()
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert 0.4 < float(one.std()) < 0.6
