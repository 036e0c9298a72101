"""Plan the cells of a comparison: a row and a seed each, with the arguments of the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainer.compare.cells import Cell
from trainer.compare.rows import Row, parse_rows
from trainer.compare.single_task import SINGLE_TASK, in_parts, shared_by_tasks
from trainer.config.config import Config
from trainer.config.grouping import recipe_sections
from trainer.config.loading import load_config, load_plugins_of
from trainer.config.renamed import RENAMED
from trainer.config.unions import has_value
from trainer.errors import UserError
from trainer.recipes.given import given_groups
from trainer.run_data import open_data
from trainer.run_folder import RunFolder

_CELL_KEYS = ("run.out", "run.seed", "run.resume", "grouping.recipe")
_PAIRED = "model.paired_init"


def plan_cells(
    config: Path,
    recipes: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    overrides: Sequence[str],
    *,
    branches: Sequence[int] = (),
    single_task_chunk: int | None = None,
) -> list[Cell]:
    """Return the cells of a comparison, in the order of the rows, then of the seeds.

    The keys under `grouping` in the file apply to the recipe that the file names; other recipes
    use their defaults. All cells have `model.paired_init`, unless an override says otherwise or an
    earlier version has begun the comparison without it.

    Args:
        config: YAML file of all cells.
        recipes: Names of recipes and files of groups, see `parse_rows`.
        seeds: Values of `run.seed`.
        out: Folder of the comparison.
        overrides: `section.key=value` for all cells; `grouping.key=value` for the cells whose
            recipe has the key.
        branches: Numbers of branches to compare; empty takes that of the configuration.
        single_task_chunk: Number of tasks that a run of `single_task` trains; None trains all.

    Raises:
        UserError: A row is not allowed, an override sets a key that compare sets or that no recipe
            has, the configuration of a cell is invalid, or its folder holds another run.
        DataError: The tasks are needed, and the data cannot be read.
    """
    load_plugins_of(config, overrides)
    rows = parse_rows(recipes, branches)
    forbidden = (*_CELL_KEYS, "model.branches") if branches else _CELL_KEYS
    for override in overrides:
        if override.partition("=")[0] in forbidden:
            raise UserError(f"override {override!r}: compare sets this key for every cell")
    by_row = _overrides_by_row(rows, overrides)
    folders = [out / row.folder / f"seed-{seed}" for row in rows for seed in seeds]
    paired = _paired_init(folders, overrides)
    cells: list[Cell] = []
    for row in rows:
        for seed in seeds:
            folder = out / row.folder / f"seed-{seed}"
            settings = (
                *by_row[row.label],
                *row.settings,
                *paired,
                *(f"run.out={folder}", f"run.seed={seed}", "run.resume=auto"),
                *(f"grouping.recipe={row.recipe}", "log.progress=false"),
            )
            label = row.label if row.label != row.recipe else ""
            cell = Cell(0, row.recipe, seed, folder, settings, label, row.branches)
            if row.recipe == SINGLE_TASK and single_task_chunk is not None:
                cells += in_parts(cell, config, single_task_chunk)
            else:
                cells.append(cell)
    cells = [_checked(replace(cell, index=index), config) for index, cell in enumerate(cells)]
    for row in rows:
        if _sets(row.settings, "grouping.groups"):
            _check_groups(next(cell for cell in cells if cell.row == row.label))
    return cells


def _check_groups(cell: Cell) -> None:
    """Check that a file holds groups of the tasks, before hours of training.

    Raises:
        UserError: It does not.
        DataError: The data cannot be read.
    """
    config = config_of(cell)
    given_groups(config, [task.name for task in open_data(config).tasks])


def config_of(cell: Cell) -> Config:
    """Return the configuration of a planned cell."""
    return load_config(Path(cell.arguments[1]), cell.arguments[2:])


def _checked(cell: Cell, config: Path) -> Cell:
    """Return a cell with all of its arguments, after a check of configuration and folder."""
    RunFolder(cell.folder).check(load_config(config, cell.arguments), may_change=False)
    return replace(cell, arguments=("--config", str(config), *cell.arguments))


def _overrides_by_row(rows: Sequence[Row], overrides: Sequence[str]) -> dict[str, list[str]]:
    """Return the overrides of each row, without `grouping` keys that its recipe lacks.

    Raises:
        UserError: No row has the key of an override.
    """
    sections = recipe_sections()
    by_row: dict[str, list[str]] = {row.label: [] for row in rows}
    for override in overrides:
        path = override.partition("=")[0]
        key = path.removeprefix("grouping.")
        matching = [
            row.label
            for row in rows
            if key == path
            or (has_value(sections[row.recipe], key) and not _sets(row.settings, path))
        ]
        if not matching:
            hint = f"renamed to {RENAMED[path]}" if path in RENAMED else "no recipe here has it"
            raise UserError(f"override {override!r}: {path}: {hint}")
        for label in matching:
            by_row[label].append(override)
    return by_row


def _sets(settings: Sequence[str], path: str) -> bool:
    return any(setting.partition("=")[0] == path for setting in settings)


def _paired_init(folders: Sequence[Path], overrides: Sequence[str]) -> list[str]:
    """Return the setting that gives all recipes the same initial weights, or nothing."""
    if _sets(overrides, _PAIRED):
        return []
    begun = next((folder for folder in folders if RunFolder(folder).config.is_file()), None)
    if begun is None or RunFolder(begun).load_config().model.paired_init:
        return [f"{_PAIRED}=true"]
    return []


def remarks(cells: Sequence[Cell]) -> list[str]:
    """Return sentences about what makes cells less comparable than they seem."""
    found = []
    configs = {cell.recipe: config_of(cell) for cell in cells}
    if not all(config.model.paired_init for config in configs.values()):
        found.append("Recipes with the same seed have the same batches, but other initial heads.")
    shared = shared_by_tasks(configs[SINGLE_TASK]) if SINGLE_TASK in configs else []
    if shared and not any(cell.part for cell in cells):
        found.append(
            f"The tasks of a run of single_task share {', '.join(shared)}; with "
            "--single-task-chunk 1 each is trained alone."
        )
    return found
