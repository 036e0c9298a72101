"""The evidence for the branch of every task, as the page shows it.

Legend: N tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.grouping.margin import SIGNIFICANT
from trainer.errors import UserError
from trainer.results.evidence import TaskEvidence, is_firm
from trainer.results.evidence_text import evidence_sentences
from trainer.results.groups import read_groups


def describe_evidence(run: Path, names: list[str]) -> dict[str, Any]:
    """Return the newest evidence of a run, with lists of N values in the order of the tasks.

    Without any the only value is `missing`, which says why.

    Args:
        run: Folder of the run.
        names: Of the N tasks.
    """
    try:
        found = read_groups(run)
    except UserError as error:
        return {"missing": str(error)}
    by_name = {task.task: task.evidence for task in found.tasks}
    tasks = [by_name.get(name, TaskEvidence()) for name in names]
    if not any(task.known for task in tasks):
        return {
            "missing": "This run has recorded no evidence: its groups were given, its tasks have "
            "not been compared in enough steps yet, or an earlier version of dmtg trained it."
        }
    agreement, sentences = found.start_agreement, evidence_sentences(found)
    return {
        "step": found.step,
        "sentences": [f"{text[0].upper()}{text[1:].rstrip('.')}." for text in sentences],
        "agreement": agreement,
        "firm": None if agreement is None else is_firm(agreement),
        "errors": SIGNIFICANT,
        "margin": [task.margin for task in tasks],
        "error": [task.standard_error for task in tasks],
        "significant": [task.significant for task in tasks],
        "firmness": [task.firmness for task in tasks],
    }
