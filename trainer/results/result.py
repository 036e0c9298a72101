"""The result of a run in memory, in `result.json` and in `groups.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.json_file import write_json
from trainer.results.evidence import TaskEvidence
from trainer.results.groups import GROUPS, RunGroups, groups_json, groups_of
from trainer.results.text import describe_result
from trainer.scoring.scores import Score, make_scores, scores_json

if TYPE_CHECKING:
    from trainer.evaluation import Metrics
    from trainer.session import Session

RESULT = "result.json"


@dataclass(frozen=True)
class RunResult:
    """What a start of a run has reached; `print` shows it as the command line does.

    Attributes:
        run: Folder of the run.
        recipe: The method that decided the groups.
        step: Optimizer steps done.
        num_steps: Optimizer steps of the whole run.
        branches: The branch of every task, and the evidence for it.
        metrics: Of the last evaluation, by task and name; empty if the run was stopped before it.
        constants: Metrics of the best constant predictions on the same samples.
        scores: The primary metric of every task beside that of its constant.
        stopped_by: What stopped the run before its end: `SIGUSR1`, `SIGTERM`, `run.max_minutes` or
            `a callback`; None if it is complete. The run is saved in any case.
    """

    run: Path
    recipe: str
    step: int
    num_steps: int
    branches: RunGroups
    metrics: Metrics
    constants: Metrics
    scores: tuple[Score, ...]
    stopped_by: str | None = None

    @property
    def groups(self) -> list[list[str]]:
        """The names of the tasks that share a branch, for every branch that has a task."""
        return self.branches.groups

    @property
    def evidence(self) -> dict[str, TaskEvidence]:
        """The evidence for the branch of every task, by its name."""
        return {task.task: task.evidence for task in self.branches.tasks}

    @property
    def agreement(self) -> float | None:
        """How firm the groups of the start are; see `RunGroups`."""
        return self.branches.agreement

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return self.stopped_by is None

    def to_json(self) -> dict[str, Any]:
        """Return the content of `result.json`."""
        return {
            "step": self.step,
            "num_steps": self.num_steps,
            "groups": self.groups,
            "agreement": self.agreement,
            "evidence": {name: evidence.to_json() for name, evidence in self.evidence.items()},
            "metrics": self.metrics,
            "constants": self.constants,
            "scores": scores_json(list(self.scores)),
        }

    def __str__(self) -> str:
        return "\n".join(describe_result(self))


def result_of(session: Session, metrics: Metrics) -> RunResult:
    """Return the result of a session after its last evaluation."""
    names = [task.name for task in session.tasks]
    branches = groups_of(session.step, names, session.learner)
    branch_of = {task.task: task.branch for task in branches.tasks}
    return RunResult(
        run=session.folder.out,
        recipe=session.config.grouping.recipe,
        step=session.step,
        num_steps=session.num_steps,
        branches=branches,
        metrics=metrics,
        constants=session.constants,
        scores=tuple(make_scores(session.tasks, branch_of, metrics, session.constants)),
    )


def write_result(result: RunResult) -> None:
    """Write `result.json` and `groups.json` into the folder of the run."""
    write_json(result.run / GROUPS, groups_json(result.branches), indent=1)
    write_json(result.run / RESULT, result.to_json(), indent=1)
