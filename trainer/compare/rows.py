"""The rows of a comparison: recipes, files of groups and numbers of branches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dmtg.names import FILE_NAME_RULE, is_file_name, to_file_name
from dmtg.plugins import RECIPES
from dmtg.suggestions import did_you_mean
from model.bounds import MAX_BRANCHES
from trainer.compare.table import ONE_BRANCH
from trainer.errors import UserError

_FIXED = "fixed"
_GROUPS = re.compile(rf"{_FIXED}(?::(?P<label>[^=]*))?=(?P<path>.*)")
_NAMED_BY_FOLDER = ("result.json", "groups.json")  # what every run calls the file of its groups


@dataclass(frozen=True)
class Row:
    """What the cells of a row have in common.

    Attributes:
        label: Name of the row.
        recipe: Name of the recipe.
        folder: Name of the folder with the runs.
        branches: Number of branches, where the comparison varies it.
        settings: `section.key=value` for the runs.
    """

    label: str
    recipe: str
    folder: str
    branches: int | None = None
    settings: tuple[str, ...] = ()


def parse_rows(recipes: Sequence[str], branches: Sequence[int] = ()) -> list[Row]:
    """Return the rows of a comparison.

    Args:
        recipes: Names of recipes, or `fixed=PATH` and `fixed:LABEL=PATH` for the groups of a file.
        branches: Numbers of branches; each recipe whose groups depend on it has a row for each.
            One branch is the same for all recipes, and has the row `multitask`. Empty leaves the
            number to the configuration.

    Raises:
        UserError: A recipe is unknown or named twice, a file does not exist, or a number of
            branches is not allowed.
    """
    if len(set(branches)) < len(branches) or not all(0 < k <= MAX_BRANCHES for k in branches):
        found = ",".join(map(str, branches))
        raise UserError(f"--k: found {found}; allowed: numbers from 1 to {MAX_BRANCHES}, each once")
    _check_recipes(recipes)
    rows = []
    for name in recipes:
        if match := _GROUPS.fullmatch(name):
            rows.append(_row_of_groups(match["path"], match["label"]))
        elif not branches or _has_own_number(name):
            rows.append(Row(name, name, name))
        else:
            rows += [_row_of_branches(name, k) for k in branches if k > 1]
    if 1 in branches and ONE_BRANCH not in recipes:
        rows.append(Row(ONE_BRANCH, ONE_BRANCH, ONE_BRANCH))
    _check_labels(rows)
    return rows


def _check_recipes(recipes: Sequence[str]) -> None:
    unknown = [each for each in recipes if each not in RECIPES and not _GROUPS.fullmatch(each)]
    if unknown or not recipes or len(set(recipes)) < len(recipes):
        allowed = ", ".join((*RECIPES.names(), "fixed=PATH"))
        hint = did_you_mean(unknown[0], RECIPES.names()) if unknown else ""
        raise UserError(
            f"--recipes: found {','.join(recipes)!r}; allowed, each once: {allowed}{hint}"
        )


def _has_own_number(recipe: str) -> bool:
    """Return whether the groups of a recipe do not depend on `model.branches`."""
    from trainer.recipes.fixed import FixedGroups
    from trainer.recipes.multitask import Multitask
    from trainer.recipes.single_task import SingleTask

    return issubclass(RECIPES[recipe], (FixedGroups, Multitask, SingleTask))


def _row_of_branches(recipe: str, k: int) -> Row:
    return Row(f"{recipe} K={k}", recipe, f"{recipe}-k{k}", k, (f"model.branches={k}",))


def _row_of_groups(text: str, label: str | None) -> Row:
    """Return the row of a file of groups; what the file holds is checked by each run."""
    path = Path(text)
    found = f"fixed{'' if label is None else f':{label}'}={text}"
    if label is not None and not is_file_name(label):
        raise UserError(f"--recipes: found {found!r}: the label must be {FILE_NAME_RULE}")
    if not text or not path.exists():
        raise UserError(f"--recipes: found {found!r}: no such file or folder")
    if label is None:
        absolute = path.resolve()
        is_of_run = path.name in _NAMED_BY_FOLDER and path.parent != Path()
        label = to_file_name(absolute.parent.name if is_of_run else absolute.stem)
    return Row(f"{_FIXED}={label}", _FIXED, f"{_FIXED}-{label}", None, (f"grouping.groups={path}",))


def _check_labels(rows: Sequence[Row]) -> None:
    """Check that every row has its own folder.

    Raises:
        UserError: Two rows have the same.
    """
    by_folder: dict[str, Row] = {}
    for row in rows:
        other = by_folder.setdefault(row.folder.casefold(), row)
        if other is not row:
            raise UserError(
                f"--recipes: {other.label!r} and {row.label!r} have the folder {row.folder!r}; "
                "give one of them another label: fixed:LABEL=PATH"
            )
