"""The evidence for groups as lines of text: sentences, a table, and cells of other tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from model.grouping.margin import SIGNIFICANT
from trainer.results.evidence import TaskEvidence, is_firm
from trainer.results.lines import counted, table, wrapped

if TYPE_CHECKING:
    from trainer.results.groups import RunGroups, TaskBranch

_SHOWN_TASKS = 24  # up to which all tasks are shown
_LEAST_TASKS = 12  # shown of more tasks


def describe_evidence(groups: RunGroups) -> list[str]:
    """Return the sentences of `evidence_sentences` as lines."""
    return [line for sentence in evidence_sentences(groups) for line in wrapped(sentence)]


def evidence_sentences(groups: RunGroups) -> list[str]:
    """Return a sentence about the margins of all tasks, and one about the groups of the start."""
    sentences = []
    known = [task.evidence for task in groups.tasks if task.evidence.significant is not None]
    if known:
        better, worse = sum(e.significant is True for e in known), sum(e.worse for e in known)
        sentence = (
            f"margins: {better} of {counted(len(known), 'task')}: the chosen branch is better "
            f"than the best other one beyond chance ({SIGNIFICANT:g} standard errors)"
        )
        sentences.append(sentence + (f"; {worse}: it is worse beyond chance" if worse else ""))
    if groups.start_agreement is not None:
        sentences.append(_describe_agreement(groups.start_agreement))
    return sentences


def _describe_agreement(agreement: float) -> str:
    shown = round(agreement, 2) + 0.0  # no negative zero
    agree = (
        f"groups from resampled steps of the warm-up agree with them at {shown:.2f} "
        "(adjusted Rand index, 1 = always the same)"
    )
    if is_firm(agreement):
        return f"The groups are firm: {agree}."
    return (
        f"The groups are NOT firm: {agree}; other seeds will give other groups. Compare with "
        "random groups before you rely on them (dmtg compare)."
    )


def describe_tasks(groups: RunGroups) -> list[str]:
    """Return a table of the evidence for the branch of every task; nothing if there is none.

    Of more than a screen of tasks, those are shown for which there is least evidence.
    """
    rows = [task for task in groups.tasks if task.evidence.known]
    if not rows:
        return []
    lines = ["evidence for the branch of each task:"]
    if len(rows) > _SHOWN_TASKS:
        rows = sorted(rows, key=_strength)[:_LEAST_TASKS]
        lines = [f"evidence for the branch, the {len(rows)} tasks with the least:"]
    columns = {
        "task": [task.task for task in rows],
        "branch": [str(task.branch) for task in rows],
        **evidence_columns([task.evidence for task in rows], errors=True),
    }
    return [*lines, *table(columns), *describe_columns(columns)]


def evidence_columns(
    evidence: Sequence[TaskEvidence], *, errors: bool = False
) -> dict[str, list[str]]:
    """Return columns of a table, without those that are empty.

    Args:
        evidence: Of every row.
        errors: Whether to show the standard errors, too.
    """
    columns = {
        "margin": [_margin(each) for each in evidence],
        "error": [_percent(each.standard_error) if errors else "" for each in evidence],
        "firm": ["" if e.firmness is None else f"{e.firmness:.2f}" for e in evidence],
    }
    return {header: cells for header, cells in columns.items() if any(cells)}


def describe_columns(columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what the columns of `evidence_columns` are, as far as a table has them."""
    margin = "loss below that of the best other branch"
    if any(cell.startswith("(") for cell in columns.get("margin", ())):
        margin += "; in brackets: may be chance"
    meanings = {
        "margin": margin,
        "error": "standard error of the margin",
        "firm": "how much of the task's group is the same over resampled steps, 0 to 1",
    }
    lines = [f"{name}: {text}" for name, text in meanings.items() if name in columns]
    return [part for line in lines for part in wrapped(line, "  ", "    ")]


def _margin(evidence: TaskEvidence) -> str:
    text = _percent(evidence.margin, sign=True)
    return text if evidence.significant or evidence.worse or not text else f"({text})"


def _percent(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return ""
    digits = 0 if abs(value) >= 9.95 else 1 if abs(value) >= 0.995 else 2
    return f"{value:{'+' if sign else ''}.{digits}f} %"


def _strength(task: TaskBranch) -> tuple[bool, float, float]:
    """Return a key that sorts tasks by the evidence for their branch, the least first."""
    evidence = task.evidence
    errors = 0.0
    if evidence.margin is not None and evidence.standard_error:
        errors = evidence.margin / evidence.standard_error
    firmness = 1.0 if evidence.firmness is None else evidence.firmness
    return evidence.significant is True, firmness, errors
