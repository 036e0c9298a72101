"""Groups and results as lines of text, for terminals of 80 columns and any number of tasks."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trainer.results.evidence import TaskEvidence, is_firm
from trainer.results.evidence_text import describe_columns, describe_evidence, evidence_columns
from trainer.results.lines import counted, table, wrapped

if TYPE_CHECKING:
    from trainer.results.groups import RunGroups, TaskBranch
    from trainer.results.result import RunResult
    from trainer.scoring.scores import Score

SHOWN_TASKS = 12  # of a branch, where groups are shown beside other things
_SHOWN_SCORES = 24  # up to which all tasks are shown
_WORST_SCORES = 12  # shown of more tasks


def describe_groups(groups: RunGroups, limit: int | None = None) -> list[str]:
    """Return a line about the grouping, the tasks of every branch, and the evidence for them.

    Args:
        limit: Tasks that are shown of each branch; None shows all.
    """
    branches, num_tasks = groups.branches, len(groups.tasks)
    if groups.undecided_evenly:
        return [f"groups: none yet, each of {num_tasks} tasks may still take any branch"]
    lines = [f"groups: {counted(num_tasks, 'task')} on {counted(len(branches), 'branch', 'es')}"]
    if groups.num_decided < num_tasks:
        lines[0] += f", {groups.num_decided} decided (undecided: probability in brackets)"
    heads = [f"branch {branch}" for branch in branches]
    counts = [counted(len(tasks), "task") for tasks in branches.values()]
    left, middle = max(map(len, heads)), max(map(len, counts))
    for head, count, tasks in zip(heads, counts, branches.values(), strict=True):
        names = [_name(task) for task in tasks]
        if limit is not None and len(names) > limit + 1:  # the last line would say as much
            names[limit:] = [f"and {len(names) - limit} more"]
        start = f"  {head:<{left}}  {count:>{middle}}  "
        lines += wrapped(", ".join(names), start, " " * len(start))
    return [*lines, *describe_evidence(groups)]


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
        f"{result.run}: finished after {counted(result.step, 'step')}",
        "",
        *describe_groups(result.branches, SHOWN_TASKS),
        "",
        *describe_scores(result.scores, result.evidence),
        "",
        f"files: {result.run} (result.json, groups.json, metrics.jsonl, checkpoints/)",
        f"next:  dmtg export {run} --out {run}/model.safetensors",
        f"       dmtg report {run}",
        f"       dmtg groups {run}",
        *_next_comparison(result, run),
    ]


def _next_comparison(result: RunResult, run: str) -> list[str]:
    """Return the command that shows what groups that are not firm are worth."""
    agreement = result.branches.start_agreement
    if agreement is None or is_firm(agreement):
        return []
    recipes = f"{result.recipe},random"
    return [f"       dmtg compare {run}/config.yaml --recipes {recipes} --out {run}-compare"]


def describe_scores(
    scores: Sequence[Score], evidence: Mapping[str, TaskEvidence] | None = None
) -> list[str]:
    """Return a table of the primary metric of every task beside that of its best constant.

    Of more than a screen of tasks, those are shown that gain least over their constants.

    Args:
        evidence: For the branch of every task, shown in columns of its own.
    """
    known = [score for score in scores if math.isfinite(score.value)]
    if not known:
        return ["evaluation: no task has a label in this split"]
    better = sum(score.beats_constant for score in known)
    lines = [
        "evaluation beside the best constant prediction: "
        f"{better} of {counted(len(known), 'task')} better"
    ]
    rows = known
    if len(known) > _SHOWN_SCORES:
        rows = sorted(known, key=_gain)[:_WORST_SCORES]
        lines[0] += f"; the {len(rows)} with the least gain:"
    columns = {
        "task": [score.task for score in rows],
        "branch": [str(score.group) for score in rows],
        "metric": [score.metric for score in rows],
        "model": [f"{score.value:.4g}" for score in rows],
        "constant": [f"{score.constant:.4g}" for score in rows],
        "gain": [_percent(_gain(score)) for score in rows],
        **evidence_columns([(evidence or {}).get(s.task, TaskEvidence()) for s in rows]),
    }
    lines += [*table(columns, texts=["metric"]), *describe_columns(columns)]
    missing = len(scores) - len(known)
    if missing:
        lines.append(f"  {counted(missing, 'task')} without a label in this split")
    return lines


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
