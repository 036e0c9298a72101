import pytest
import torch

from model.layout import HeadLayout, used_branches
from model.rows import as_rows, take
from model.tasks import TaskSpec

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
    plan = HeadLayout(TASKS, 2, None).plan([(n, k) for n in range(4) for k in range(2)], CPU)
    assert plan.banks["binary_1_bce"].heads == (slice(0, 3), slice(3, 6))
    assert plan.banks["binary_1_bce"].tasks == (slice(0, 3), slice(0, 3))
    assert plan.cells.tolist() == [2, 4, 6, 3, 5, 7, 0, 1]


def test_a_plan_of_some_heads():
    plan = HeadLayout(TASKS, 3, None).plan([(3, 2), (1, 2), (2, 0)], CPU)
    assert plan.heads == ((2, 0), (1, 2), (3, 2))
    assert plan.branches == (0, 2)
    assert list(plan.banks) == ["binary_1_bce"]
    bank = plan.banks["binary_1_bce"]
    assert bank.heads[0] == slice(1, 2) and bank.heads[1] is None
    assert bank.heads[2].tolist() == [6, 8]
    assert bank.tasks[2].tolist() == [0, 2]


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
    with pytest.raises(ValueError, match=r"plan holds head \(0, 0\)"):
        layout.plan([(0, 0)], CPU)


def test_used_branches():
    assert used_branches([(0, 3), (1, 1), (2, 3)]) == (1, 3)


def test_rows_are_views_where_contiguous():
    tensor = torch.arange(12).view(6, 2)
    assert as_rows([], CPU) is None
    assert as_rows([2, 3, 4], CPU) == slice(2, 5)
    assert take(tensor, as_rows([2, 3], CPU)).data_ptr() == tensor[2].data_ptr()
    assert torch.equal(take(tensor, as_rows([0, 4], CPU)), tensor[[0, 4]])
