"""Sampled heads: exact inclusion probabilities, no bias, less variance, the same everywhere."""
# Legend: N tasks, K branches, S samples.

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.encoders import build_encoder
from model.grouping.grouping import Grouping, gumbel_noise
from model.grouping.head_sampling import (
    HeadSample,
    HeadSampler,
    inclusion_probabilities,
    running_mean,
    systematic_choice,
)
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec

CPU = torch.device("cpu")
N, K = 5, 4
PROBABILITIES = torch.tensor(
    [
        [0.25, 0.25, 0.25, 0.25],
        [0.97, 0.01, 0.01, 0.01],
        [0.6, 0.2, 0.15, 0.05],
        [0.0, 0.9, 0.1, 0.0],
        [0.5, 0.0, 0.3, 0.2],
    ]
)
ALIVE = PROBABILITIES > 0


def sampler(size=2, probabilities=PROBABILITIES, alive=ALIVE, seed=3):
    own = HeadSampler(size, seed, alive, CPU)
    own.refresh(probabilities, alive)
    return own


def inclusion(own):
    return own.tensors()["inclusion"].numpy()


def design(row):
    """Every set of heads that one task can get, with its probability; apart from the code."""
    found = {}
    orders = list(itertools.permutations(range(len(row))))
    for order in orders:
        ends = np.cumsum(row[list(order)])
        begins = ends - row[list(order)]
        cuts = np.unique(np.round(np.concatenate([[0, 1], begins % 1, ends % 1]), 12))
        for low, high in itertools.pairwise(cuts):
            points = (low + high) / 2 + np.arange(len(row))
            own = frozenset(
                head
                for head, begin, end in zip(order, begins, ends, strict=True)
                if ((begin <= points) & (points < end)).any()
            )
            found[own] = found.get(own, 0.0) + (high - low) / len(orders)
    return found


@given(
    seed=st.integers(0, 9999),
    size=st.integers(1, 7),
    num_branches=st.integers(1, 7),
    power=st.floats(0.0, 12.0),
)
@settings(max_examples=80, deadline=None)
def test_inclusion_probabilities_are_proportional_but_capped(seed, size, num_branches, power):
    random = np.random.default_rng(seed)
    weights = random.random((6, num_branches)) ** power
    weights[random.random(weights.shape) < 0.3] = 0.0
    weights[:, 0] = 1.0
    found = inclusion_probabilities(weights, size)
    num_live = (weights > 0).sum(axis=1)
    np.testing.assert_allclose(found.sum(axis=1), np.minimum(size, num_live), rtol=1e-9)
    assert ((found > 0) == (weights > 0)).all() and (found <= 1).all()
    for own, row in zip(found, weights, strict=True):
        shared = (own < 1 - 1e-9) & (row > 0)
        ratios = own[shared] / row[shared]
        if shared.any():
            assert ratios.max() <= ratios.min() * (1 + 1e-9)
            assert (row[own >= 1 - 1e-9] * ratios.max() >= 1 - 1e-6).all()


def test_inclusion_probabilities_by_hand():
    weights = np.array([[0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1], [0.5, 0.4, 0.1, 0.0]])
    expected = [[0.5] * 4, [1, 1 / 3, 1 / 3, 1 / 3], [1, 0.8, 0.2, 0]]
    np.testing.assert_allclose(inclusion_probabilities(weights, 2), expected, rtol=1e-12)


def test_half_of_a_choice_is_even_among_the_live_heads():
    found = inclusion(sampler(1))
    live = ALIVE.numpy()
    expected = 0.5 * PROBABILITIES.numpy() + 0.5 * live / live.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_every_head_is_chosen_as_often_as_it_should():
    """The measure of the starting points that choose a head, for every order of the heads."""
    row = inclusion(sampler(2))[2]
    for order in itertools.permutations(range(K)):
        ends = np.cumsum(row[list(order)])
        cuts = np.unique(np.concatenate([[0.0, 1.0], ends % 1]))
        middles, lengths = (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts)
        many = len(middles)
        chosen = systematic_choice(
            np.tile(row, (many, 1)), np.tile(np.array(order), (many, 1)), middles
        )
        assert (chosen.sum(axis=1) == 2).all()
        np.testing.assert_allclose(lengths @ chosen, row, atol=1e-9)


def test_frequencies_of_many_draws():
    own, head_samples = sampler(2), 4000
    counts = sum(own.sample_heads(step).chosen.astype(int) for step in range(head_samples))
    expected = inclusion(own)
    deviation = np.sqrt(expected * (1 - expected) / head_samples)
    assert (np.abs(counts / head_samples - expected) <= 5 * deviation + 1e-12).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_a_task_gets_so_many_heads_or_all_that_are_alive(size):
    own = sampler(size)
    num_live = ALIVE.sum(dim=1).numpy()
    for step in range(50):
        head_sample = own.sample_heads(step)
        assert (head_sample.chosen.sum(axis=1) == np.minimum(size, num_live)).all()
        assert not (head_sample.chosen & ~ALIVE.numpy()).any()
        assert torch.equal(head_sample.factor > 0, torch.from_numpy(head_sample.chosen))
        assert head_sample.branches == (0, 1, 2, 3)


def test_every_pair_of_heads_can_meet():
    own = sampler(2, torch.full((1, 4), 0.25), torch.ones(1, 4, dtype=torch.bool))
    pairs = {tuple(own.sample_heads(step).chosen[0].nonzero()[0].tolist()) for step in range(200)}
    assert pairs == set(itertools.combinations(range(4), 2))


def test_a_branch_without_live_heads_is_not_computed():
    alive = ALIVE.clone()
    alive[:, 3] = False
    assert sampler(2, alive=alive).sample_heads(0).branches == (0, 1, 2)


def test_the_choice_is_a_function_of_seed_step_and_probabilities():
    one, same, other = sampler(), sampler(), sampler(seed=4)
    for step in (0, 7, 10**6):
        assert np.array_equal(one.sample_heads(step).chosen, same.sample_heads(step).chosen)
    first = [one.sample_heads(step).chosen for step in range(20)]
    assert not all(np.array_equal(first[0], later) for later in first[1:])
    assert any(
        not np.array_equal(first[step], other.sample_heads(step).chosen) for step in range(20)
    )
    even = sampler(
        2, torch.full((200, K), 0.25), torch.ones(200, K, dtype=torch.bool)
    ).sample_heads(0)
    assert len({tuple(row) for row in even.chosen.tolist()}) == 6, "every task has its own choice"


@pytest.mark.parametrize("rank", [0, 1, 7])
def test_the_choice_knows_nothing_of_the_noise(rank):
    own, steps = sampler(), 2000
    products = np.zeros((N, K))
    for step in range(steps):
        noise = gumbel_noise((N, K), 3, step, rank).numpy() - 0.5772
        products += noise * (own.sample_heads(step).chosen - inclusion(own))
    deviation = np.pi / np.sqrt(6) * np.sqrt(inclusion(own) * (1 - inclusion(own)) * steps)
    assert (np.abs(products) <= 5 * deviation + 1e-3).all()


def estimates(own, losses, share):
    """Every outcome of the choice for all tasks but the last, with its probability."""
    designs = [design(row) for row in inclusion(own)]
    assert all(sum(each.values()) == pytest.approx(1) for each in designs)
    some = own.sample_heads(0)
    for sets in itertools.product(*designs):
        chosen = np.array([[k in own_set for k in range(losses.shape[1])] for own_set in sets])
        factor = np.where(chosen, 1 / np.maximum(inclusion(own), 1e-30), 0.0)
        head_sample = HeadSample(chosen, some.branches, torch.tensor(factor).float(), some.baseline)
        weight = np.prod([each[own_set] for each, own_set in zip(designs, sets, strict=True)])
        yield (
            float(weight),
            head_sample,
            head_sample.losses(torch.where(head_sample.factor > 0, losses, 1e9), share),
        )


def relaxed(grouping):
    """The weights z of a step, with a graph of their own."""
    return grouping.sample(gumbel_noise((2, 4), 0, 0), 1.5)


def watched(own, losses):
    """A sampler with a baseline for every head."""
    everything = torch.ones(losses.shape)
    own.record(losses, HeadSample(np.ones(losses.shape, dtype=bool), (), everything, losses))
    return own


@pytest.mark.parametrize("baseline", [0.001, 0.5, 7.0])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_estimates_have_no_bias_however_wrong_the_baseline(size, baseline):
    """The exact mean over all outcomes is the loss of every head and the gradient in the logits."""
    torch.manual_seed(0)
    alive = torch.ones(2, 4, dtype=torch.bool)
    alive[1, 2] = False
    probabilities = torch.tensor([[0.6, 0.2, 0.15, 0.05], [0.3, 0.3, 0.0, 0.4]])
    own = watched(sampler(size, probabilities, alive), baseline * (torch.rand(2, 4) + 0.5))
    losses, share = torch.rand(2, 4), torch.tensor([0.5, 1.0])
    grouping = Grouping(2, 4)
    grouping.alive = alive
    z = relaxed(grouping).detach()
    mean, gradient, weighted = (torch.zeros(2, 4, dtype=torch.float64) for _ in range(3))
    for probability, head_sample, found in estimates(own, losses, share):
        mean += probability * found
        gradient += probability * grouping.logit_gradient(relaxed(grouping), found)
        weighted += probability * head_sample.weights(z)
    expected = grouping.logit_gradient(relaxed(grouping), losses)
    torch.testing.assert_close(mean[alive], losses[alive].double(), atol=2e-6, rtol=0)
    torch.testing.assert_close(gradient, expected.double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(weighted, z.double(), atol=1e-6, rtol=0)


def test_the_baseline_lowers_the_variance_of_the_gradient():
    """Losses that the baseline knows within a tenth of their size."""
    torch.manual_seed(0)
    alive, even = torch.ones(2, 4, dtype=torch.bool), torch.full((2, 4), 0.25)
    past, now = torch.rand(2, 4) * 0.2 + 0.6, torch.rand(2, 4) * 0.06
    losses, share = past + now, torch.ones(2)
    grouping = Grouping(2, 4)
    expected = grouping.logit_gradient(relaxed(grouping), losses)

    def variance(own):
        total = 0.0
        for probability, _, found in estimates(own, losses, share):
            error = grouping.logit_gradient(relaxed(grouping), found) - expected
            total += probability * float(error.square().sum())
        return total

    small = torch.full((2, 4), 1e-6)
    without, with_it = (variance(watched(sampler(2, even, alive), b)) for b in (small, past))
    assert with_it < 0.02 * without


def test_a_task_without_a_baseline_takes_the_mean_of_its_own_losses():
    first = sampler(1).sample_heads(0)
    assert first.baseline.isnan().all()
    assert first.known.tolist() == [[False]] * N
    losses = torch.rand(N, K, generator=torch.Generator().manual_seed(0)) + 0.5
    found = first.losses(torch.where(first.factor > 0, losses, 0.0), torch.ones(N))
    expected = losses[first.chosen][:, None].expand(N, K)
    torch.testing.assert_close(found, expected)
    second = sampler(2).sample_heads(0)
    found = second.losses(torch.where(second.factor > 0, losses, 0.0), torch.ones(N))
    for task in range(N):
        own = losses[task][second.chosen[task]]
        assert (found[task][~second.chosen[task]] == own.mean()).all()
        spread = second.factor[task][second.chosen[task]] * (own - own.mean())
        torch.testing.assert_close(found[task][second.chosen[task]], own.mean() + spread)
    samples = torch.where(second.factor > 0, losses, 0.0)[..., None] * torch.tensor([0.25, 0.75])
    every = second.losses(samples, torch.ones(N))
    torch.testing.assert_close(every.sum(dim=2), found)


def test_samples_and_ranks_add_up():
    """The estimate is linear: of shares of the labels, and of samples one by one."""
    torch.manual_seed(0)
    head_sample = watched(sampler(2), torch.rand(N, K)).sample_heads(5)
    first, second = torch.rand(N, K), torch.rand(N, K)
    share = torch.rand(N)
    parts = head_sample.losses(first, share) + head_sample.losses(second, 1 - share)
    whole = head_sample.losses(first + second, torch.ones(N))
    torch.testing.assert_close(parts, whole)
    samples = torch.rand(N, K, 7)
    found = head_sample.losses(samples, share)
    assert found.shape == samples.shape
    torch.testing.assert_close(found.sum(dim=2), head_sample.losses(samples.sum(dim=2), share))
    z = torch.rand(N, K, 7)
    torch.testing.assert_close(head_sample.weights(z).sum(dim=2), head_sample.weights(z.sum(dim=2)))


def test_all_heads_are_the_plain_losses_to_the_last_bit():
    torch.manual_seed(0)
    head_sample = watched(sampler(4), torch.rand(N, K)).sample_heads(0)
    losses, z = torch.rand(N, K), torch.rand(N, K)
    assert torch.equal(head_sample.losses(losses, torch.rand(N))[ALIVE], losses[ALIVE])
    assert torch.equal(head_sample.weights(z)[ALIVE], z[ALIVE])


def test_the_baseline_is_of_the_steps_before():
    own = sampler(2)
    losses = torch.rand(N, K) + 0.5
    before = own.sample_heads(0)
    assert before.baseline.isnan().all()
    own.record(torch.where(before.factor > 0, losses, torch.nan), before)
    assert before.baseline.isnan().all()
    after, seen = own.sample_heads(1).baseline, before.factor > 0
    assert torch.equal(after[seen], losses[seen])
    mean = torch.where(seen, losses, 0.0).sum(dim=1) / seen.sum(dim=1)
    expected = mean[:, None].expand(N, K)
    torch.testing.assert_close(after[~seen], expected[~seen])


def test_a_checkpoint_brings_back_choice_and_baseline():
    torch.manual_seed(0)
    own, losses = sampler(2), torch.rand(N, K)
    for step in range(4):
        head_sample = own.sample_heads(step)
        own.record(torch.where(head_sample.factor > 0, losses, torch.nan), head_sample)
    restored = HeadSampler(2, 3, ALIVE, CPU)
    restored.load({name: value.clone() for name, value in own.tensors().items()})
    for name, value in own.tensors().items():
        found = restored.tensors()[name]
        torch.testing.assert_close(found, value, rtol=0, atol=0, equal_nan=True, msg=name)
    for step in range(4, 9):
        one, other = own.sample_heads(step), restored.sample_heads(step)
        assert np.array_equal(one.chosen, other.chosen) and one.branches == other.branches
        torch.testing.assert_close(one.baseline, other.baseline, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(one.factor, other.factor)


def test_the_past_fades_with_the_steps_however_often_a_head_is_seen():
    """Of a loss of 1 that turns to 2, the same share is left after the same number of steps."""
    always = torch.ones(1, 1)
    every_fourth = torch.ones(1, 1)
    for step in range(40):
        always = running_mean(always, torch.full((1, 1), 2.0), 0.95)
        loss = 2.0 if step % 4 == 3 else torch.nan
        gap = torch.full((1, 1), 4.0 if step % 4 == 3 else 0.0)
        every_fourth = running_mean(every_fourth, torch.full((1, 1), loss), 0.95, gap)
    assert float(always) == pytest.approx(2 - 0.95**40)
    assert float(every_fourth) == pytest.approx(float(always))


def test_a_mean_starts_with_the_first_loss():
    none = torch.full((1, 2), torch.nan)
    assert running_mean(none, none, 0.9).isnan().all()
    first = running_mean(none, torch.tensor([[3.0, torch.nan]]), 0.9)
    assert first[0, 0] == 3.0 and first[0, 1].isnan()
    second = running_mean(first, torch.tensor([[torch.nan, 5.0]]), 0.9)
    assert second.tolist() == [[3.0, 5.0]]


def test_a_loss_of_zero_is_a_loss():
    """The mean starts with it, and a later loss does not replace it."""
    mean = running_mean(torch.full((1, 1), torch.nan), torch.zeros(1, 1), 0.9)
    assert mean.tolist() == [[0.0]]
    assert float(running_mean(mean, torch.ones(1, 1), 0.9)) == pytest.approx(0.1)


def test_a_head_whose_loss_is_zero_counts_as_seen():
    own = sampler(2)
    for step in range(40):  # every head is computed at least once
        head_sample = own.sample_heads(step)
        losses = torch.zeros(N, K)
        losses[:, 0] = 1.0
        own.record(head_sample.computed_only(losses), head_sample)
    after = own.sample_heads(40)
    assert after.known.all()
    assert torch.equal(after.baseline[ALIVE], losses[ALIVE])
    means = own.tensors()["mean_losses"]
    assert torch.equal(means.isnan(), ~ALIVE), "heads that are off have no loss"


def test_a_task_whose_losses_are_all_zero_has_a_baseline():
    own = watched(sampler(2), torch.zeros(N, K)).sample_heads(0)
    assert own.known.all() and not own.baseline.any()
    found = own.losses(torch.ones(N, K), torch.ones(N))
    expected = torch.where(own.factor > 0, own.factor, 0.0)
    assert torch.equal(found, expected), "not the mean of the losses of this step"


@pytest.mark.parametrize("shape", [(N, K), (N, K, 6)])
def test_the_null_sample_estimates_nothing(shape):
    heads = [(task, branch) for task, branch in ALIVE.nonzero().tolist()]
    null = HeadSample.all_heads(heads, (N, K), CPU)
    assert torch.equal(torch.from_numpy(null.chosen), ALIVE) and null.branches == (0, 1, 2, 3)
    assert null.known.all() and null.gap == 1.0
    generator = torch.Generator().manual_seed(0)
    alive = ALIVE if len(shape) == 2 else ALIVE.unsqueeze(2)
    losses = torch.where(alive, torch.randn(shape, generator=generator), 0.0)
    z = torch.where(alive, torch.rand(shape, generator=generator), 0.0)
    fraction = torch.rand(N, generator=generator)
    assert torch.equal(null.losses(losses, fraction), losses)
    assert torch.equal(null.weights(z), z)
    if len(shape) == 2:
        assert torch.equal(null.computed_only(losses).isnan(), ~ALIVE)
        # Exactly as the mean of a run that knows nothing of samples
        mean = torch.rand(shape, generator=generator)
        expected = running_mean(mean, losses, 0.98)
        assert torch.equal(running_mean(mean, losses, 0.98, null.gap), expected)


def test_a_bad_loss_of_one_head_is_not_spread_by_the_null_sample():
    null = HeadSample.all_heads([(0, 0), (0, 1)], (1, 2), CPU)
    found = null.losses(torch.tensor([[torch.inf, 2.0]]), torch.ones(1))
    assert found.tolist() == [[torch.inf, 2.0]]


DENSE = [
    TaskSpec("depth", "dense_regression"),
    TaskSpec("edges", "dense_regression"),
    TaskSpec("seg", "dense_classification", channels=3),
    TaskSpec("hat", "binary"),
    TaskSpec("hair", "binary"),
]


@pytest.mark.parametrize("decoder", ["resize", "deconv"])
def test_chosen_heads_are_as_among_all_of_them(decoder):
    """Their losses and gradients are the same, and those of the others are zero."""
    torch.manual_seed(0)
    encoder = build_encoder("xception", 3, image_size=(32, 16), options={"sizes": [4, 8]})
    network = MultiTaskNetwork(DENSE, encoder, (32, 16), dense_widths=(8,), decoder=decoder)
    images = torch.randint(0, 256, (3, 3, 32, 16), dtype=torch.uint8)
    dense = {name: torch.rand(3, 1, 32, 16) for name in ("depth", "edges")}
    dense["seg"] = torch.randint(0, 3, (3, 1, 32, 16))
    scalars = torch.randint(0, 2, (2, 3)).float()
    targets = network.labels.targets(scalars, dense, torch.ones(5, 3, dtype=torch.bool))
    head_sample = sampler(
        2, torch.full((5, 3), 1 / 3), torch.ones(5, 3, dtype=torch.bool)
    ).sample_heads(0)
    chosen = torch.from_numpy(head_sample.chosen)

    def losses_and_gradients(selection):
        losses = network(images, selection, targets)["losses"]
        own = torch.where(chosen, losses, 0.0)
        return own.detach(), torch.autograd.grad(own.sum(), list(network.parameters()))

    expected, all_gradients = losses_and_gradients(network.select(network.heads))
    found, gradients = losses_and_gradients(network.select_sample(head_sample))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found > 0, chosen)
    names = [name for name, _ in network.named_parameters()]
    largest = max(float(gradient.abs().max()) for gradient in all_gradients)
    for name, own, all_own in zip(names, gradients, all_gradients, strict=True):
        # A bias before a normalisation has a gradient of rounding only.
        atol = 1e-4 * float(all_own.abs().max()) + 1e-6 * largest
        torch.testing.assert_close(own, all_own, rtol=1e-3, atol=atol, msg=name)
        if name.startswith("stacked_heads."):
            stack = network.layout.rows[name.split(".")[1]]
            off = [row for head, row in stack.items() if not head_sample.chosen[head]]
            assert off and not own[off].any(), name
