"""Groups of tasks that share a branch: from a file or a run, at random, and as heads.

Legend: N tasks, K branches.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from model.grouping.grouping import Grouping
from model.heads.layout import Head
from trainer.errors import UserError

Groups = tuple[tuple[int, ...], ...]  # the tasks of every branch, both ascending

KEY = "grouping.groups"  # in messages


def random_groups(num_tasks: int, num_branches: int, seed: int) -> Groups:
    """Draw a branch for every task.

    As many tasks as there are branches get one each, so that no branch is empty; the others get a
    branch uniformly at random.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(num_tasks)
    first = generator.permutation(num_branches)[:num_tasks]
    labels = np.empty(num_tasks, dtype=int)
    labels[order[: len(first)]] = first
    labels[order[len(first) :]] = generator.integers(num_branches, size=num_tasks - len(first))
    return groups_of_labels(labels.tolist())


def groups_of_labels(labels: Sequence[int]) -> Groups:
    """Return the groups of tasks with equal labels, in the order of their first tasks."""
    members: dict[int, list[int]] = {}
    for task, label in enumerate(labels):
        members.setdefault(label, []).append(task)
    return tuple(tuple(group) for group in members.values())


def heads_of_groups(groups: Groups) -> list[Head]:
    """Return one head (task, branch) for every task."""
    return sorted((task, branch) for branch, group in enumerate(groups) for task in group)


def grouping_of_groups(groups: Groups) -> Grouping:
    """Return a grouping in which every task has the one live head of its group."""
    heads = heads_of_groups(groups)
    grouping = Grouping(len(heads), len(groups))
    rows, columns = zip(*heads, strict=True)
    grouping.alive = torch.zeros_like(grouping.alive)
    grouping.alive[rows, columns] = True
    return grouping


def read_groups(path: Path, tasks: Sequence[str]) -> Groups:
    """Read the groups of a file or of a run.

    Args:
        path: A JSON file with `{"groups": [["task", ...], ...]}`, which `result.json` of a run is,
            too; an exported model; or the folder of a run, whose result counts or else its newest
            checkpoint.
        tasks: Names of the tasks.

    Raises:
        UserError: They cannot be read, or do not name every task exactly once.
    """
    result = path / "result.json"
    source = result if result.is_file() else path
    return groups_of_names(_names(source), tasks, str(source))


def groups_of_names(names: Sequence[Sequence[str]], tasks: Sequence[str], source: str) -> Groups:
    """Return groups of task names as groups of numbers, in the order of their first tasks.

    Args:
        names: The names of the tasks of every group.
        tasks: Names of the tasks of the run.
        source: Where the names are from, for messages.

    Raises:
        UserError: They do not name every task exactly once, or a group is empty.
    """
    position = {name: index for index, name in enumerate(tasks)}
    listed = [name for group in names for name in group]
    times = Counter(listed)
    errors = {
        "is not a task of the run": [name for name in listed if name not in position],
        "is named twice": [name for name in tasks if times[name] > 1],
        "is in no group": [name for name in tasks if not times[name]],
    }
    for error, wrong in errors.items():
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise UserError(f"{KEY}: {source}: task {wrong[0]!r}{more} {error}")
    if not all(names):
        raise UserError(f"{KEY}: {source}: group {list(map(len, names)).index(0)} is empty")
    return tuple(sorted(tuple(sorted(position[name] for name in group)) for group in names))


def _names(path: Path) -> Sequence[Sequence[str]]:
    if path.is_dir():
        return _names_of_run(path)
    if path.suffix == ".safetensors":
        from model.bundle import BundleError, load_pruned

        try:
            return load_pruned(path).groups
        except BundleError as error:
            raise UserError(f"{KEY}: {error}") from None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{KEY}: {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{KEY}: {path} is not JSON: {error}") from None
    groups = tree.get("groups") if isinstance(tree, dict) else None
    if isinstance(groups, list) and all(map(_is_group, groups)):
        return groups
    raise UserError(
        f'{KEY}: {path} must hold {{"groups": [["task", ...], ...]}} without an empty group'
    )


def _names_of_run(run: Path) -> Sequence[Sequence[str]]:
    """Return the groups of the newest checkpoint in a run folder.

    Raises:
        UserError: It holds no run, or the branch of a task is not decided yet.
    """
    from trainer.checkpoints.checkpoint import load_grouping, newest_checkpoint

    if not (run / "config.yaml").is_file():
        raise UserError(f"{KEY}: {run} holds no run (config.yaml is missing)")
    try:
        checkpoint = newest_checkpoint(run / "checkpoints")
        if checkpoint is None:
            raise UserError(f"{run} has no result.json and no checkpoint yet")
        progress, tensors = load_grouping(checkpoint)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from None
    tasks, alive = [str(task["name"]) for task in progress.network["tasks"]], tensors["alive"]
    decided = int((alive.sum(dim=1) == 1).sum())
    if decided < len(tasks):
        raise UserError(
            f"{KEY}: {run}: {decided} of {len(tasks)} tasks are decided after step "
            f"{progress.step}; let the run end, or take the most probable branches with "
            f"`dmtg groups {run} --out FILE`"
        )
    labels = alive.int().argmax(dim=1).tolist()
    return [[tasks[task] for task in group] for group in groups_of_labels(labels)]


def _is_group(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(n, str) for n in value)
