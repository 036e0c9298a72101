"""The result of a run in memory and in `result.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.json_file import write_json
from trainer.results.groups import RunGroups, groups_of
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
        step: Optimizer steps done.
        num_steps: Optimizer steps of the whole run.
        branches: The branch of every task.
        metrics: Of the last evaluation, by task and name; empty if the run was stopped before it.
        constants: Metrics of the best constant predictions on the same samples.
        scores: The primary metric of every task beside that of its constant.
        stopped_by: What stopped the run before its end: `SIGUSR1`, `SIGTERM`, `run.max_minutes` or
            `a callback`; None if it is complete. The run is saved in any case.
    """

    run: Path
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
    def finished(self) -> bool:
        """Whether the run is complete."""
        return self.stopped_by is None

    def to_json(self) -> dict[str, Any]:
        """Return the content of `result.json`."""
        return {
            "step": self.step,
            "num_steps": self.num_steps,
            "groups": self.groups,
            "metrics": self.metrics,
            "constants": self.constants,
            "scores": scores_json(list(self.scores)),
        }

    def __str__(self) -> str:
        return "\n".join(describe_result(self))


def result_of(session: Session, metrics: Metrics) -> RunResult:
    """Return the result of a session after its last evaluation."""
    names = [task.name for task in session.tasks]
    branches = groups_of(session.step, names, session.learner.grouping)
    branch_of = {task.task: task.branch for task in branches.tasks}
    return RunResult(
        run=session.folder.out,
        step=session.step,
        num_steps=session.num_steps,
        branches=branches,
        metrics=metrics,
        constants=session.constants,
        scores=tuple(make_scores(session.tasks, branch_of, metrics, session.constants)),
    )


def write_result(result: RunResult) -> None:
    """Write `result.json` into the folder of the run."""
    write_json(result.run / RESULT, result.to_json(), indent=1)
