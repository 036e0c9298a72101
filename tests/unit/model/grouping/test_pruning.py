import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.grouping.pruning import harden, prune

ON = torch.ones(2, 3, dtype=torch.bool)
PROBABILITIES = torch.tensor([[0.7, 0.25, 0.05], [0.2, 0.2, 0.6]])


def draw(seed, tasks=6, branches=4):
    generator = torch.Generator().manual_seed(seed)
    alive = torch.rand(tasks, branches, generator=generator) < 0.6
    alive[torch.arange(tasks), torch.randint(branches, (tasks,), generator=generator)] = True
    logits = torch.randn(tasks, branches, generator=generator)
    return logits.masked_fill(~alive, -torch.inf).softmax(1), alive


def test_heads_under_the_threshold_go():
    assert prune(PROBABILITIES, ON, 0.2).tolist() == [[True, True, False], [True, True, True]]
    assert prune(PROBABILITIES, ON, 0.3).tolist() == [[True, False, False], [False, False, True]]


def test_the_best_head_stays_under_any_threshold():
    assert torch.equal(prune(PROBABILITIES, ON, 1.0), harden(PROBABILITIES, ON))


def test_equals_give_the_lowest_live_branch():
    alive = torch.tensor([[False, True, True]])
    assert harden(torch.full((1, 3), 1 / 3), alive).tolist() == [[False, True, False]]


@given(seed=st.integers(0, 10**6), threshold=st.floats(0, 1))
def test_pruning_only_removes_and_leaves_each_task_a_head(seed, threshold):
    probabilities, alive = draw(seed)
    kept = prune(probabilities, alive, threshold)
    assert not (kept & ~alive).any() and kept.any(dim=1).all()
    assert ((alive & ~kept) <= (probabilities < threshold)).all()
    assert torch.equal(prune(probabilities, kept, threshold), kept)
    hard = harden(probabilities, alive)
    assert (hard.sum(dim=1) == 1).all() and not (hard & ~kept).any()


def test_inputs_stay_as_they_were():
    alive = ON.clone()
    prune(PROBABILITIES, alive, 0.3)
    assert torch.equal(alive, ON)


def test_faults():
    with pytest.raises(ValueError, match=r"pruning\.threshold is 1\.5, must be from 0 to 1"):
        prune(PROBABILITIES, ON, 1.5)
    with pytest.raises(ValueError, match="not finite"):
        harden(torch.full((2, 3), float("nan")), ON)
