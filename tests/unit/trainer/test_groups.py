import pytest
import torch

from model.grouping import Grouping
from trainer.config import parse_config
from trainer.groups import GroupLearner, hard_heads

N, K, STEPS = 4, 3, 100


def config(**sections):
    tree = {
        "run": {"out": "out", "steps": STEPS, "seed": 3},
        "data": {"shards": "s", "size": [8, 8], "global_batch": 1},
        "model": {"encoder": {"name": "residual64"}, "branches": K},
        "pruning": {"start": 0.2, "finish": 0.6, "every": 5, "threshold": 0.2},
        **sections,
    }
    return parse_config(tree, "test")


def learner(rank=0, logits=None, **sections):
    grouping = Grouping(N, K)
    if logits is not None:
        with torch.no_grad():
            grouping.logits.copy_(torch.tensor(logits))
    return GroupLearner(grouping, config(**sections), STEPS, torch.device("cpu"), rank)


def test_noise_of_every_rank_or_of_all():
    shared = {"grouping": {"noise": "shared"}}
    first, second = (learner(rank).weights(7) for rank in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(learner(0, **shared).weights(7), learner(1, **shared).weights(7))
    assert torch.equal(learner(0).weights(7), learner(0, **shared).weights(7))


def test_noise_is_a_function_of_the_step():
    assert torch.equal(learner().weights(7), learner().weights(7))
    assert not torch.equal(learner().weights(7), learner().weights(8))


def test_temperature_anneals_until_the_finish():
    own = learner(grouping={"temperature": {"start": 4, "end": 1, "shape": "linear"}})
    assert own.temperature(0) == 4 and own.temperature(30) == 2.5
    assert own.temperature(60) == own.temperature(99) == 1


def test_heads_under_the_threshold_fall_only_at_their_steps():
    rows = [[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 1.0, 1.0], [9.0, 9.0, 9.0]]
    own = learner(logits=rows)
    for step in (1, 15, 19, 21, 24):  # before the start, or between the steps of pruning
        assert own.prune(step) == []
    assert own.prune(20) == [(1, 1), (1, 2), (2, 0)]
    assert own.prune(25) == []
    assert own.prune(60) == [(0, 1), (0, 2), (2, 2), (3, 1), (3, 2)]
    assert own.finished and own.prune(61) == []
    assert own.chosen_heads() == [(0, 0), (1, 0), (2, 1), (3, 0)]


def test_a_dead_head_never_comes_back():
    own = learner(logits=[[3.0, 0.0, 0.0]] * N)
    own.prune(20)
    with torch.no_grad():
        own.grouping.logits[:, 1] = 50.0
    assert own.prune(25) == [] and own.prune(60) == []
    assert own.chosen_heads() == [(n, 0) for n in range(N)]
    assert hard_heads(own.grouping.logits.detach(), own.grouping.alive) == own.chosen_heads()


def test_learning_rate_factor_scales_the_update():
    """Adam's first update is the learning rate against the gradient's sign."""
    own = learner(grouping={"lr": 0.2})
    own.update(torch.tensor([[1.0, -2.0, 0.0]] * N), 0.5)
    expected = torch.tensor([[0.9, 1.1, 1.0]] * N)
    torch.testing.assert_close(own.grouping.logits.detach(), expected)
    assert own.updates == 1


def test_tensors_and_updates_restore_a_learner_exactly():
    torch.manual_seed(0)
    gradients = [torch.randn(N, K) for _ in range(6)]
    whole, half = learner(), learner()
    for gradient in gradients:
        whole.update(gradient, 1.0)
    for gradient in gradients[:3]:
        half.update(gradient, 1.0)
    restored = learner()
    restored.load(half.tensors(), half.updates)
    for gradient in gradients[3:]:
        restored.update(gradient, 1.0)
    assert restored.updates == 6
    for name, value in whole.tensors().items():
        assert torch.equal(value, restored.tensors()[name]), name


def test_dropping_branches_keeps_what_is_left():
    torch.manual_seed(1)
    rows = [[2.0, -9.0, 1.0]] * N
    cut, whole = learner(logits=rows), learner(logits=rows)
    for own in (cut, whole):
        own.update(torch.ones(N, K), 1.0)
        own.prune(20)
    assert cut.drop_empty_branches() == (0, 2)
    gradient = torch.randn(N, K)
    gradient[:, 1] = 0.0
    cut.update(gradient[:, [0, 2]], 1.0)
    whole.update(gradient, 1.0)
    assert cut.updates == whole.updates == 2
    assert cut.grouping.alive.shape == (N, 2) and bool(cut.grouping.alive.all())
    assert torch.equal(cut.grouping.logits, whole.grouping.logits[:, [0, 2]])
    probabilities = whole.grouping.probabilities()[:, [0, 2]]
    torch.testing.assert_close(cut.grouping.probabilities(), probabilities)


@pytest.mark.parametrize("sampler", ["gumbel", "straight_through"])
def test_dropping_branches_keeps_the_sampler(sampler):
    grouping = Grouping(N, K, sampler=sampler)
    own = GroupLearner(grouping, config(), STEPS, torch.device("cpu"), 0)
    grouping.alive[:, 0] = False
    own.drop_empty_branches()
    assert own.grouping.sampler == sampler
