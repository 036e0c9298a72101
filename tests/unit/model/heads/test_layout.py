import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.heads.layout import HeadLayout, used_branches
from model.rows import as_rows, take
from model.tasks.spec import TaskSpec

CPU = torch.device("cpu")
TASKS = [
    TaskSpec("a", "regression"),
    TaskSpec("b", "binary"),
    TaskSpec("c", "binary"),
    TaskSpec("d", "binary"),
]


def test_heads_are_sorted_by_signature_branch_and_task():
    layout = HeadLayout(TASKS, 2, None)
    assert layout.heads == ((1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1), (0, 0), (0, 1))
    assert layout.members == {"binary_1_bce": (1, 2, 3), "regression_1_l1": (0,)}


def test_a_plan_of_everything_is_made_of_slices():
    selection = HeadLayout(TASKS, 2, None).select([(n, k) for n in range(4) for k in range(2)], CPU)
    assert selection.stacked_heads["binary_1_bce"].heads == (slice(0, 3), slice(3, 6))
    assert selection.stacked_heads["binary_1_bce"].tasks == (slice(0, 3), slice(0, 3))
    assert selection.cells.tolist() == [2, 4, 6, 3, 5, 7, 0, 1]


def test_a_plan_of_some_heads():
    selection = HeadLayout(TASKS, 3, None).select([(3, 2), (1, 2), (2, 0)], CPU)
    assert selection.heads == ((2, 0), (1, 2), (3, 2))
    assert selection.branches == (0, 2)
    assert list(selection.stacked_heads) == ["binary_1_bce"]
    stack = selection.stacked_heads["binary_1_bce"]
    assert stack.heads[0] == slice(1, 2) and stack.heads[1] is None
    assert stack.heads[2].tolist() == [6, 8]
    assert stack.tasks[2].tolist() == [0, 2]


def test_rows_after_some_heads_are_gone():
    layout = HeadLayout(TASKS, 2, [(0, 1), (1, 0), (2, 1), (3, 1)])
    assert layout.kept_rows([(3, 1), (0, 1)]) == {"binary_1_bce": [2], "regression_1_l1": [0]}


@pytest.mark.parametrize(
    ("tasks", "heads", "message"),
    [
        ([], None, "tasks is empty"),
        ([TASKS[0], TASKS[0]], None, "tasks holds 'a' more than once"),
        (TASKS, [(0, 0), (1, 2)], r"heads holds \(1, 2\), must be .* below \(4, 2\)"),
        (TASKS, [(0, 0), (1, 0), (2, 0)], "heads holds none of task 'd'"),
    ],
)
def test_faults(tasks, heads, message):
    with pytest.raises(ValueError, match=message):
        HeadLayout(tasks, 2, heads)


def test_a_plan_must_keep_to_the_heads_that_exist():
    layout = HeadLayout(TASKS[:1], 2, [(0, 1)])
    with pytest.raises(ValueError, match=r"selection holds head \(0, 0\)"):
        layout.select([(0, 0)], CPU)


def test_used_branches():
    assert used_branches([(0, 3), (1, 1), (2, 3)]) == (1, 3)


def test_rows_are_views_where_contiguous():
    tensor = torch.arange(12).view(6, 2)
    groups = [np.array(group, dtype=np.int64) for group in ([], [2, 3, 4], [0, 4], [5], [1, 2, 4])]
    empty, run, pair, one, three = as_rows(groups, CPU)
    assert empty is None and run == slice(2, 5) and one == slice(5, 6)
    assert take(tensor, run).data_ptr() == tensor[2].data_ptr()
    assert torch.equal(take(tensor, pair), tensor[[0, 4]])
    assert torch.equal(take(tensor, three), tensor[[1, 2, 4]])


@given(seed=st.integers(0, 999), num_branches=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_matrix_plans_the_same_as_the_list_of_its_heads(seed, num_branches):
    """Any choice among any heads, against a loop over all of them."""
    random = np.random.default_rng(seed)
    exists = random.random((4, num_branches)) < 0.7
    exists[np.arange(4), random.integers(num_branches, size=4)] = True
    layout = HeadLayout(TASKS, num_branches, np.argwhere(exists).tolist())
    chosen = exists & (random.random(exists.shape) < 0.6)
    selection = layout.select_matrix(chosen, CPU, branches=[0])
    assert selection.heads == tuple(head for head in layout.heads if chosen[head])
    used = set(chosen.any(axis=0).nonzero()[0].tolist())
    assert selection.branches == tuple(sorted({0, *used}))
    assert selection.idle == (() if 0 in used else (0,))
    assert selection.cells.tolist() == [n * num_branches + k for n, k in selection.heads]
    for name, members in layout.members.items():
        for branch in range(num_branches):
            own = [task for task in members if chosen[task, branch]]
            rows = [layout.rows[name][task, branch] for task in own]
            stack = selection.stacked_heads.get(name)
            if not own:
                assert stack is None or (
                    stack.heads[branch] is None and stack.tasks[branch] is None
                )
                continue
            everything = torch.arange(4 * num_branches)
            assert take(everything, stack.heads[branch]).tolist() == rows
            assert [members[n] for n in take(everything, stack.tasks[branch])] == own
    same = layout.select(selection.heads, CPU)
    assert (
        same.heads == selection.heads
        and torch.equal(same.cells, selection.cells)
        and same.idle == ()
    )


def test_a_matrix_must_keep_to_the_heads_that_exist():
    layout = HeadLayout(TASKS, 2, [(0, 1), (1, 0), (2, 1), (3, 1)])
    chosen = np.zeros((4, 2), dtype=bool)
    chosen[2, 0] = True
    with pytest.raises(
        ValueError, match=r"selection holds head \(2, 0\), must hold heads of the net"
    ):
        layout.select_matrix(chosen, CPU)
