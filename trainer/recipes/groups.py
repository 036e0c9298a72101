"""The grouping that a run is given and does not learn: which tasks share a branch from the start.

Legend: N tasks, K branches.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.bundle import BundleError, load_pruned
from model.heads.layout import Head
from trainer.config.config import Config
from trainer.errors import UserError

Groups = tuple[tuple[int, ...], ...]  # per branch its tasks, both ascending

SEARCHING = ("tag", "grad_tag")


def search_folder(config: Config) -> Path:
    """Where a recipe that searches first keeps the run of its search."""
    return config.run.out / "search"


def found_groups(config: Config) -> Path:
    """The file of the groups that a search has found."""
    return search_folder(config) / "groups.json"


def given_groups(config: Config, tasks: Sequence[str]) -> Groups | None:
    """The groups of the recipe; None if it learns them.

    Args:
        tasks: Names of the run's tasks.

    Raises:
        UserError: A file of groups is missing, damaged or not of these tasks.
    """
    recipe = config.grouping.recipe
    if recipe == "multitask":
        return (tuple(range(len(tasks))),)
    if recipe == "single_task":
        return tuple((task,) for task in range(len(tasks)))
    if recipe == "random":
        return random_groups(len(tasks), config.model.branches, config.run.seed)
    if recipe in SEARCHING:
        return read_groups(found_groups(config), tasks)
    if recipe == "fixed":
        assert config.grouping.groups is not None, "the section checks it"
        return read_groups(config.grouping.groups, tasks)
    return None


def random_groups(num_tasks: int, num_branches: int, seed: int) -> Groups:
    """Draw a branch for every task.

    As many tasks as there are branches get one each, so that none stays empty; the others draw
    uniformly.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(num_tasks)
    first = generator.permutation(num_branches)[:num_tasks]
    labels = np.empty(num_tasks, dtype=int)
    labels[order[: len(first)]] = first
    labels[order[len(first) :]] = generator.integers(num_branches, size=num_tasks - len(first))
    return groups_of_labels(labels.tolist())


def groups_of_labels(labels: Sequence[int]) -> Groups:
    """The groups of tasks with equal labels, in the order of their first tasks."""
    members: dict[int, list[int]] = {}
    for task, label in enumerate(labels):
        members.setdefault(label, []).append(task)
    return tuple(tuple(group) for group in members.values())


def heads_of_groups(groups: Groups) -> list[Head]:
    """One head (task, branch) for every task."""
    return sorted((task, branch) for branch, group in enumerate(groups) for task in group)


def read_groups(path: Path, tasks: Sequence[str]) -> Groups:
    """Read a JSON file `{"groups": [["task", ...], ...]}`, or take the groups of an exported model.

    Raises:
        UserError: It cannot be read, or does not name every task exactly once.
    """
    names = _names(path)
    position = {name: index for index, name in enumerate(tasks)}
    listed = [name for group in names for name in group]
    times = Counter(listed)
    faults = {
        "is not a task of the run": [name for name in listed if name not in position],
        "is named twice": [name for name in tasks if times[name] > 1],
        "is in no group": [name for name in tasks if not times[name]],
    }
    for fault, found in faults.items():
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise UserError(f"grouping.groups: {path}: task {found[0]!r}{more} {fault}")
    return tuple(sorted(tuple(sorted(position[name] for name in group)) for group in names))


def _names(path: Path) -> list[list[str]]:
    if path.suffix == ".safetensors":
        try:
            return load_pruned(path).groups
        except BundleError as error:
            raise UserError(f"grouping.groups: {error}") from None
    try:
        tree = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"grouping.groups: {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"grouping.groups: {path} is not JSON: {error}") from None
    groups = tree.get("groups") if isinstance(tree, dict) else None
    if isinstance(groups, list) and all(map(_is_group, groups)):
        return groups
    raise UserError(
        f'grouping.groups: {path} must hold {{"groups": [["task", ...], ...]}} without an empty '
        "group"
    )


def _is_group(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(n, str) for n in value)
