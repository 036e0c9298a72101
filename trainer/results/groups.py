"""The grouping of a run: of a session, in `status.json`, in a checkpoint and in `groups.json`.

Legend: N tasks, K branches.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import UserError
from trainer.results.evidence import TaskEvidence, gather_evidence

if TYPE_CHECKING:
    from torch import Tensor

    from model.grouping.paired_losses import PairedLosses
    from trainer.recipes.learner import GroupLearner

GROUPS = "groups.json"
_STATUS = "status.json"
_EVEN = 1e-3  # relative difference of probabilities that are taken to be equal


@dataclass(frozen=True)
class TaskBranch:
    """The most probable branch of a task.

    Attributes:
        task: Name of the task.
        branch: Number of the branch, among those that the network has at that step.
        probability: Of this branch.
        choices: Branches on which the task still has a head; 1 once its branch is decided.
        evidence: For this branch.
    """

    task: str
    branch: int
    probability: float
    choices: int
    evidence: TaskEvidence = field(default_factory=TaskEvidence)

    @property
    def decided(self) -> bool:
        """Whether the task has one head."""
        return self.choices == 1

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, of which `from_json` makes the same again."""
        return {
            "branch": self.branch,
            "probability": round(self.probability, 4),
            "choices": self.choices,
            **self.evidence.to_json(),
        }

    @classmethod
    def from_json(cls, task: str, values: dict[str, Any] | list[Any]) -> TaskBranch:
        """Return the branch of a task of JSON values; earlier versions wrote a list.

        Raises:
            ValueError, TypeError, KeyError: They are not those of `to_json`.
        """
        if isinstance(values, list):
            branch, probability, choices = values
            return cls(task, int(branch), float(probability), int(choices))
        evidence = TaskEvidence.from_json(values)
        branch, choices = int(values["branch"]), int(values["choices"])
        return cls(task, branch, float(values["probability"]), choices, evidence)


@dataclass(frozen=True)
class RunGroups:
    """The branches of all tasks after a step.

    Attributes:
        step: Optimizer steps done.
        tasks: In the order of the run.
        agreement: Mean adjusted Rand index of the groups that the recipe started from and those
            from resampled steps of the warm-up; None before, and for recipes without such a start.
    """

    step: int
    tasks: tuple[TaskBranch, ...]
    agreement: float | None = None

    @property
    def branches(self) -> dict[int, list[TaskBranch]]:
        """The tasks of every branch that has one, by its number."""
        members: dict[int, list[TaskBranch]] = {}
        for task in sorted(self.tasks, key=lambda each: each.branch):
            members.setdefault(task.branch, []).append(task)
        return members

    @property
    def undecided_evenly(self) -> bool:
        """Whether every task has equal probabilities on all of several branches."""
        return bool(self.tasks) and all(
            task.choices > 1 and abs(task.probability * task.choices - 1) < _EVEN
            for task in self.tasks
        )

    @property
    def groups(self) -> list[list[str]]:
        """The names of the tasks of every branch that has one."""
        return [[task.task for task in tasks] for tasks in self.branches.values()]

    @property
    def num_decided(self) -> int:
        """Tasks whose branch is decided."""
        return sum(task.decided for task in self.tasks)

    @property
    def start_agreement(self) -> float | None:
        """The agreement, or None where it says nothing: in one group, or with one for each task."""
        return self.agreement if 1 < len(self.branches) < len(self.tasks) else None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, of which `from_json` makes the same again."""
        tasks = {each.task: each.to_json() for each in self.tasks}
        return {"step": self.step, "agreement": self.agreement, "tasks": tasks}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunGroups:
        """Return the groups of JSON values.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: They are not those of `to_json`.
        """
        tasks = [TaskBranch.from_json(str(name), task) for name, task in values["tasks"].items()]
        agreement = values.get("agreement")
        agreement = None if agreement is None else float(agreement)
        return cls(int(values["step"]), tuple(tasks), agreement)


def groups_of(step: int, names: Sequence[str], learner: GroupLearner) -> RunGroups:
    """Return the groups of a session's learner after a step."""
    grouping = learner.grouping
    heads = (grouping.probabilities().detach(), grouping.alive)
    return _groups(step, names, heads, learner.paired_losses, learner.firmness)


def groups_json(found: RunGroups) -> dict[str, Any]:
    """Return what `groups.json` and `dmtg groups --json` hold, which `grouping.groups` takes."""
    return {"groups": found.groups, "decided": found.num_decided, **found.to_json()}


def read_groups(run: Path) -> RunGroups:
    """Return the newest groups of a run, which may be running, stopped or finished.

    Raises:
        UserError: The folder holds no run, or the run has no groups yet.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} holds no run (config.yaml is missing)")
    logged, saved = _logged(run), _newest_step(run)
    # The record of a step is from before its pruning, the checkpoint from after it.
    if logged is not None and (saved is None or saved[0] < logged.step):
        return logged
    if saved is None:
        raise UserError(f"{run}: no groups yet; they are known from the first log record on")
    return _saved(saved[1])


def _logged(run: Path) -> RunGroups | None:
    """Return the groups in the status; None if it has none, as that of an older version."""
    try:
        status = json.loads((run / _STATUS).read_text(encoding="utf-8"))
        return RunGroups.from_json(status["grouping"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _newest_step(run: Path) -> tuple[int, Path] | None:
    """Return step and folder of the newest checkpoint."""
    from trainer.checkpoints.files import checkpoints, step_of

    found = checkpoints(run / "checkpoints")
    return (step_of(found[-1]), found[-1]) if found else None


def _saved(checkpoint: Path) -> RunGroups:
    import torch

    from model.grouping.paired_losses import PairedLosses
    from trainer.checkpoints.checkpoint import load_grouping

    progress, tensors = load_grouping(checkpoint)
    alive = tensors["alive"]
    probabilities = tensors["logits"].masked_fill(~alive, -torch.inf).softmax(dim=1)
    names = [str(task["name"]) for task in progress.network["tasks"]]
    num_tasks, num_branches = alive.shape
    paired_losses = PairedLosses.of_checkpoint(tensors, (num_tasks, num_branches), alive.device)
    heads = (probabilities, alive)
    return _groups(progress.step, names, heads, paired_losses, tensors.get("firmness"))


def _groups(
    step: int,
    names: Sequence[str],
    heads: tuple[Tensor, Tensor],
    paired_losses: PairedLosses,
    firmness: Tensor | None,
) -> RunGroups:
    """Return the groups after a step.

    Args:
        heads: Probabilities and live heads [N,K].
    """
    from model.grouping.pruning import harden

    probabilities, alive = heads
    branches = harden(probabilities, alive).nonzero()[:, 1:]
    best = probabilities.gather(1, branches)[:, 0]
    chosen = branches[:, 0].tolist()
    evidence, agreement = gather_evidence(chosen, paired_losses, firmness)
    columns = (chosen, best.tolist(), alive.sum(dim=1).tolist(), evidence)
    tasks = (TaskBranch(*values) for values in zip(names, *columns, strict=True))
    return RunGroups(step, tuple(tasks), agreement)
