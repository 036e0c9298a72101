"""What every recipe that learns groups does with its heads: off for good, one each at the end."""

import pytest
import torch

from model.grouping.grouping import Grouping
from trainer.config.loading import parse_config
from trainer.recipes.learner import GroupLearner, hard_heads
from trainer.recipes.published import PublishedGroups

N, K, STEPS = 4, 3, 100


def learner(logits=None, sampler="gumbel"):
    tree = {
        "run": {"out": "out", "steps": STEPS, "seed": 3},
        "data": {"shards": "s", "image_size": [8, 8], "global_batch": 1},
        "model": {"encoder": {"name": "residual64"}, "branches": K},
        "grouping": {"recipe": "published"},
        "pruning": {"begin": 0.2, "end": 0.6, "every": 5, "threshold": 0.2},
    }
    grouping = Grouping(N, K, sampler=sampler)
    if logits is not None:
        with torch.no_grad():
            grouping.logits.copy_(torch.tensor(logits))
    return PublishedGroups(grouping, parse_config(tree, "test"), STEPS, torch.device("cpu"), 0)


@pytest.mark.parametrize("missing", ["temperature", "update", "weights"])
def test_a_learner_without_one_of_its_methods_cannot_be_made(missing):
    """The error names what the author of a recipe has left out."""
    methods = {"temperature", "update", "weights"} - {missing}
    members = {name: getattr(PublishedGroups, name) for name in methods}
    incomplete = type("Incomplete", (GroupLearner,), members)
    with pytest.raises(TypeError, match=missing):
        incomplete(Grouping(N, K), None, STEPS, torch.device("cpu"), 0)


def test_signals_are_only_for_those_that_ask():
    own = learner()
    assert not any(own.collects(step) for step in range(STEPS))
    with pytest.raises(NotImplementedError):
        own.collect({}, torch.empty(0))


def test_heads_under_the_threshold_fall_only_at_their_steps():
    rows = [[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 1.0, 1.0], [9.0, 9.0, 9.0]]
    own = learner(rows)
    for step in (1, 15, 19, 21, 24):  # before the start, or between the steps of pruning
        assert own.prune(step) == []
    assert own.prune(20) == [(1, 1), (1, 2), (2, 0)]
    assert own.prune(25) == []
    assert own.prune(60) == [(0, 1), (0, 2), (2, 2), (3, 1), (3, 2)]
    assert own.finished and own.prune(61) == []
    assert own.chosen_heads() == [(0, 0), (1, 0), (2, 1), (3, 0)]


def test_a_dead_head_never_comes_back():
    own = learner([[3.0, 0.0, 0.0]] * N)
    own.prune(20)
    with torch.no_grad():
        own.grouping.logits[:, 1] = 50.0
    assert own.prune(25) == [] and own.prune(60) == []
    assert own.chosen_heads() == [(n, 0) for n in range(N)]
    assert hard_heads(own.grouping.logits.detach(), own.grouping.alive) == own.chosen_heads()


def test_of_equal_branches_the_lowest_live_one_is_chosen():
    own = learner([[1.0, 1.0, 1.0]] * N)
    own.grouping.alive[0, 0] = False
    assert own.chosen_heads() == [(0, 1), (1, 0), (2, 0), (3, 0)]


def test_one_branch_is_no_choice():
    grouping = Grouping(N, K)
    grouping.alive[:, 1:] = False
    own = learner()
    own.load({**own.tensors(), "alive": grouping.alive}, 0)
    assert own.finished and not own.prunes_at(60)
    assert own.drop_empty_branches() == (0,)
    assert own.weights(3, 1).tolist() == [[1.0]] * N


@pytest.mark.parametrize("sampler", ["gumbel", "straight_through"])
def test_dropping_branches_keeps_the_sampler(sampler):
    own = learner(sampler=sampler)
    own.grouping.alive[:, 0] = False
    own.drop_empty_branches()
    assert own.grouping.sampler == sampler
