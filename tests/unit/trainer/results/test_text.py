"""Groups and results as text of 80 columns, for few and for a thousand tasks."""

import math

import pytest

from trainer.results.groups import RunGroups, TaskBranch
from trainer.results.lines import WIDTH
from trainer.results.text import describe_groups, describe_scores
from trainer.scoring.scores import Score


def groups(number, branches, choices=1):
    tasks = [TaskBranch(f"task_{n:04}", n % branches, 0.625, choices) for n in range(number)]
    return RunGroups(7, tuple(tasks))


def names_in(lines):
    return [word.strip(",") for line in lines for word in line.split() if word.startswith("task_")]


def test_all_tasks_of_a_thousand_are_listed_once_in_their_branch():
    found = groups(1000, 8)
    lines = describe_groups(found)
    assert lines[0] == "groups: 1000 tasks on 8 branches"
    assert all(len(line) <= WIDTH for line in lines)
    assert names_in(lines) == [name for group in found.groups for name in group]
    starts = [line for line in lines if line.startswith("  branch ")]
    assert [line.split()[1:3] for line in starts] == [[str(n), "125"] for n in range(8)]


def test_a_small_table_of_a_thousand_tasks():
    lines = describe_groups(groups(1000, 8), limit=12)
    assert len(names_in(lines)) == 96 and len(lines) < 40
    assert sum("and 113 more" in " ".join(lines[n : n + 2]) for n in range(len(lines))) >= 8


def test_undecided_tasks_show_their_probability():
    tasks = (TaskBranch("a", 0, 1.0, 1), TaskBranch("b", 0, 0.625, 3))
    lines = describe_groups(RunGroups(7, tasks))
    assert lines[0].startswith("groups: 2 tasks on 1 branch, 1 decided")
    assert lines[1].endswith("a, b (62 %)")


def score(task, value, constant, higher=False, branch=0):
    return Score(task, branch, "accuracy" if higher else "mae", value, constant, higher)


def row(lines, task):
    return next(line.split() for line in lines if line.split()[:1] == [task])


@pytest.mark.parametrize(
    ("probabilities", "even"),
    [((1 / 3, 1 / 3), True), ((1 / 3, 0.4), False), ((0.9, 1 / 3), False)],
)
def test_before_the_distributions_differ_there_are_no_groups(probabilities, even):
    tasks = tuple(TaskBranch(f"t{n}", 0, p, 3) for n, p in enumerate(probabilities))
    lines = describe_groups(RunGroups(5, tasks))
    assert (lines == ["groups: none yet, each of 2 tasks may still take any branch"]) == even
    assert even or "t0" in lines[1]


def test_scores_stand_beside_their_constants():
    lines = describe_scores(
        [
            score("better", 0.5, 1.0),
            score("worse", 2.0, 1.0),
            score("higher", 0.75, 0.5, higher=True),
            score("equal", 1.0, 1.0),
            score("zero", 0.0, 0.0),
            score("unlabelled", math.nan, math.nan),
        ]
    )
    assert lines[0].endswith("2 of 5 tasks better")
    assert row(lines, "better")[3:] == ["0.5", "1", "+50", "%"]
    assert row(lines, "worse")[-2:] == ["-100", "%"]
    assert row(lines, "higher")[-2:] == ["+50", "%"]
    assert row(lines, "equal")[-2:] == row(lines, "zero")[-2:] == ["0", "%"]
    assert lines[-1] == "  1 task without a label in this split"
    assert all(len(line) <= WIDTH for line in lines)


def test_of_many_tasks_those_of_least_gain_are_shown():
    scores = [score(f"task_{n:04}", n / 1000, 0.5) for n in range(1000)]
    lines = describe_scores(scores)
    assert lines[0].endswith("500 of 1000 tasks better; the 12 with the least gain:")
    assert names_in(lines) == [f"task_{n:04}" for n in range(999, 987, -1)]


def test_names_of_a_hundred_letters_fit():
    lines = describe_scores([score("x" * 100, 1.0, 2.0)])
    assert all(len(line) <= WIDTH for line in lines)


def test_a_split_without_labels():
    assert describe_scores([score("a", math.nan, 1.0)]) == [
        "evaluation: no task has a label in this split"
    ]


@pytest.mark.parametrize("number", [1, 3])
def test_groups_survive_json(number):
    found = groups(number, 2, choices=2)
    assert RunGroups.from_json(found.to_json()) == found
