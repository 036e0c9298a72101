"""Groups and results as lines of text, for terminals of 80 columns and any number of tasks."""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dmtg.names import shortened

if TYPE_CHECKING:
    from trainer.results.groups import RunGroups, TaskBranch
    from trainer.results.result import RunResult
    from trainer.scoring.scores import Score

WIDTH = 80
SHOWN_TASKS = 12  # of a branch, where groups are shown beside other things
_SHOWN_SCORES = 24  # up to which all tasks are shown
_WORST_SCORES = 12  # shown of more tasks
_LONGEST_NAME = 28  # characters of a task in the table of scores


def describe_groups(groups: RunGroups, limit: int | None = None) -> list[str]:
    """Return a line about the grouping, and the tasks of every branch.

    Args:
        limit: Tasks that are shown of each branch; None shows all.
    """
    branches, num_tasks = groups.branches, len(groups.tasks)
    if groups.undecided_evenly:
        return [f"groups: none yet, each of {num_tasks} tasks may still take any branch"]
    lines = [f"groups: {_count(num_tasks, 'task')} on {_count(len(branches), 'branch', 'es')}"]
    if groups.num_decided < num_tasks:
        lines[0] += f", {groups.num_decided} decided (undecided: probability in brackets)"
    heads = [f"branch {branch}" for branch in branches]
    counts = [_count(len(tasks), "task") for tasks in branches.values()]
    left, middle = max(map(len, heads)), max(map(len, counts))
    for head, count, tasks in zip(heads, counts, branches.values(), strict=True):
        names = [_name(task) for task in tasks]
        if limit is not None and len(names) > limit + 1:  # the last line would say as much
            names[limit:] = [f"and {len(names) - limit} more"]
        start = f"  {head:<{left}}  {count:>{middle}}  "
        lines += textwrap.wrap(
            ", ".join(names),
            WIDTH,
            initial_indent=start,
            subsequent_indent=" " * len(start),
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def describe_result(result: RunResult) -> list[str]:
    """Return what a run has found, where its files are, and the next commands."""
    run = shlex.quote(str(result.run))
    if not result.finished:
        return [
            f"{result.run}: stopped by {result.stopped_by} after step {result.step} of "
            f"{result.num_steps}, and saved; run.resume=auto continues it",
            *describe_groups(result.branches, SHOWN_TASKS),
        ]
    return [
        f"{result.run}: finished after {_count(result.step, 'step')}",
        "",
        *describe_groups(result.branches, SHOWN_TASKS),
        "",
        *describe_scores(result.scores),
        "",
        f"files: {result.run} (result.json, metrics.jsonl, checkpoints/)",
        f"next:  dmtg export {run} --out {run}/model.safetensors",
        f"       dmtg report {run}",
        f"       dmtg groups {run}",
    ]


def describe_scores(scores: Sequence[Score]) -> list[str]:
    """Return a table of the primary metric of every task beside that of its best constant.

    Of more than a screen of tasks, those are shown that gain least over their constants.
    """
    known = [score for score in scores if math.isfinite(score.value)]
    if not known:
        return ["evaluation: no task has a label in this split"]
    better = sum(score.beats_constant for score in known)
    lines = [
        "evaluation beside the best constant prediction: "
        f"{better} of {_count(len(known), 'task')} better"
    ]
    rows = known
    if len(known) > _SHOWN_SCORES:
        rows = sorted(known, key=_gain)[:_WORST_SCORES]
        lines[0] += f"; the {len(rows)} with the least gain:"
    lines += _table(
        ("task", "branch", "metric", "model", "constant", "gain"),
        [
            (
                shortened(score.task, _LONGEST_NAME),
                str(score.group),
                score.metric,
                f"{score.value:.4g}",
                f"{score.constant:.4g}",
                _percent(_gain(score)),
            )
            for score in rows
        ],
    )
    missing = len(scores) - len(known)
    if missing:
        lines.append(f"  {_count(missing, 'task')} without a label in this split")
    return lines


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return aligned lines; the first and third columns are text, the others numbers."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    return [
        "  "
        + "  ".join(
            text.ljust(width) if number in (0, 2) else text.rjust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]


def _gain(score: Score) -> float:
    """Return the relative improvement over the constant in percent; NaN counts as none."""
    if not (math.isfinite(score.constant) and score.constant):
        return math.inf if score.beats_constant else 0.0
    change = (score.value - score.constant) / abs(score.constant)
    return 100 * (change if score.higher_is_better else -change)


def _percent(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return "0 %" if round(value) == 0 else f"{value:+.0f} %"


def _name(task: TaskBranch) -> str:
    return task.task if task.decided else f"{task.task} ({100 * task.probability:.0f} %)"


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"
