"""The layout of the heads: the stack and row of each, and which of them a forward pass computes.

Legend: N tasks, K branches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.bounds import MAX_TASKS
from model.rows import Rows, as_rows, to_device
from model.tasks.spec import Signature, TaskSpec

Head = tuple[int, int]  # (task, branch)


@dataclass(frozen=True)
class StackSelection:
    """What one stack computes, per branch: rows of the stack, and rows of its tasks' targets."""

    heads: tuple[Rows | None, ...]
    tasks: tuple[Rows | None, ...]


@dataclass(frozen=True)
class HeadSelection:
    """Which heads a forward pass computes, as indices: no step has to synchronise for them.

    Attributes:
        heads: The heads in the order in which they are computed.
        branches: The branches that are computed, ascending.
        stacked_heads: Per stack what it computes; stacks that compute nothing are left out.
        cells: Index of every head in a flattened [N,K] matrix, long.
        idle: Branches that are computed although none of the heads needs them.
    """

    heads: tuple[Head, ...]
    branches: tuple[int, ...]
    stacked_heads: dict[str, StackSelection]
    cells: Tensor
    idle: tuple[int, ...] = ()


def used_branches(heads: Iterable[Head]) -> tuple[int, ...]:
    """Return the branches that have a head, ascending."""
    return tuple(sorted({branch for _, branch in heads}))


class HeadLayout:
    """The heads of a network, one stack per signature of its tasks.

    Args:
        tasks: The N tasks.
        num_branches: K.
        heads: None means every task on every branch.

    Attributes:
        members: Per stack, in order of the signatures, its tasks.
        specs: Per stack one of its tasks; all of them agree in kind, outputs and loss.
        heads: All heads, sorted by stack, branch and task.
        rows: Per stack the row of each of its heads.

    Raises:
        ValueError: If there are no tasks, two of one name, a head that is out of range, or a task
            without a head.
    """

    def __init__(
        self, tasks: Sequence[TaskSpec], num_branches: int, heads: Iterable[Head] | None
    ) -> None:
        _check_tasks(tasks)
        self.num_tasks, self.num_branches = len(tasks), num_branches
        of_signature: dict[Signature, list[int]] = {}
        for index, task in enumerate(tasks):
            of_signature.setdefault(task.signature, []).append(index)
        self.members = {
            "_".join(map(str, signature)): tuple(of_signature[signature])
            for signature in sorted(of_signature)
        }
        self.specs = {name: tasks[members[0]] for name, members in self.members.items()}
        if heads is None:
            heads = product(range(len(tasks)), range(num_branches))
        chosen = [(int(n), int(k)) for n, k in heads]
        _check_heads(chosen, tasks, num_branches)
        by_branch = sorted(set(chosen), key=lambda head: (head[1], head[0]))
        stack_of = {task: name for name, members in self.members.items() for task in members}
        self.rows: dict[str, dict[Head, int]] = {name: {} for name in self.members}
        for head in by_branch:
            rows = self.rows[stack_of[head[0]]]
            rows[head] = len(rows)
        self.heads = tuple(head for rows in self.rows.values() for head in rows)
        self._members = {name: np.array(members) for name, members in self.members.items()}
        self._tables = {name: self._table(name) for name in self.rows}

    def _table(self, name: str) -> NDArray[np.int64]:
        """Return the row of every head of a stack by branch and task, -1 where there is none."""
        place = {task: index for index, task in enumerate(self.members[name])}
        table = np.full((self.num_branches, len(place)), -1, dtype=np.int64)
        for (task, branch), row in self.rows[name].items():
            table[branch, place[task]] = row
        return table

    def kept_rows(self, heads: Iterable[Head]) -> dict[str, list[int]]:
        """Return per stack the rows of these heads, ascending."""
        chosen = set(heads)
        return {
            name: [row for head, row in rows.items() if head in chosen]
            for name, rows in self.rows.items()
        }

    def select(self, heads: Iterable[Head], device: torch.device) -> HeadSelection:
        """Select for computation some of the heads.

        Raises:
            ValueError: If a head does not exist.
        """
        listed = set(heads)
        missing = sorted(listed - set(self.heads))
        if missing:
            raise _missing(missing[0])
        chosen = np.zeros((self.num_tasks, self.num_branches), dtype=bool)
        chosen[tuple(np.array(sorted(listed), dtype=np.int64).reshape(-1, 2).T)] = True
        return self.select_matrix(chosen, device)

    def select_matrix(
        self, chosen: NDArray[np.bool_], device: torch.device, branches: Iterable[int] = ()
    ) -> HeadSelection:
        """Select for computation the heads that are true in a matrix, fast enough for every step.

        Args:
            chosen: [N,K].
            branches: Branches that are computed even if no chosen head needs them.

        Raises:
            ValueError: If a head does not exist.
        """
        stacked_heads, heads = {}, []
        for name, table in self._tables.items():
            members = self._members[name]
            branch, position = chosen[members].T.nonzero()  # by branch, then by task
            rows = table[branch, position]
            absent = rows < 0
            if absent.any():
                first = absent.argmax()
                raise _missing((int(members[position[first]]), int(branch[first])))
            if not len(rows):
                continue
            bounds = np.searchsorted(branch, np.arange(1, self.num_branches))
            stacked_heads[name] = StackSelection(
                tuple(as_rows(np.split(rows, bounds), device)),
                tuple(as_rows(np.split(position, bounds), device)),
            )
            heads.append(np.stack([members[position], branch]))
        tasks, columns = (
            np.concatenate(heads, axis=1) if heads else np.zeros((2, 0), dtype=np.int64)
        )
        (cells,) = to_device([tasks * self.num_branches + columns], device)
        used = set(columns.tolist())
        idle = tuple(sorted(set(branches) - used))
        return HeadSelection(
            tuple(zip(tasks.tolist(), columns.tolist(), strict=True)),
            tuple(sorted(used.union(idle))),
            stacked_heads,
            cells,
            idle,
        )


def _check_tasks(tasks: Sequence[TaskSpec]) -> None:
    names = [task.name for task in tasks]
    if not names:
        raise ValueError("tasks is empty, must hold at least one task")
    if len(names) > MAX_TASKS:
        raise ValueError(f"tasks holds {len(names)}, must hold at most {MAX_TASKS}")
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"tasks holds {repeated[0]!r} more than once; names must be unique")


def _check_heads(heads: Sequence[Head], tasks: Sequence[TaskSpec], num_branches: int) -> None:
    for head in heads:
        if head[0] not in range(len(tasks)) or head[1] not in range(num_branches):
            raise ValueError(
                f"heads holds {head}, must be (task, branch) below ({len(tasks)}, {num_branches})"
            )
    bare = sorted(set(range(len(tasks))) - {task for task, _ in heads})
    if bare:
        name = tasks[bare[0]].name
        raise ValueError(f"heads holds none of task {name!r}, must hold at least one")


def _missing(head: Head) -> ValueError:
    return ValueError(f"selection holds head {head}, must hold heads of the network only")
