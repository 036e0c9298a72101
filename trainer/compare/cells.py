"""Compare recipes: train each with each seed, in a separate process and folder.

A finished cell is not trained again; a stopped cell resumes from its newest checkpoint.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from dmtg.plugins import RECIPES
from dmtg.secrets import without_secrets
from dmtg.suggestions import did_you_mean
from trainer.compare.result import read_result
from trainer.config.grouping import recipe_sections
from trainer.config.loading import load_config, load_plugins_of
from trainer.config.renamed import RENAMED
from trainer.config.unions import has_value
from trainer.errors import STOPPED, UserError
from trainer.json_file import write_json
from trainer.launch_files import TRAIN_SCRIPT
from trainer.run_folder import RunFolder

_CELL_KEYS = ("run.out", "run.seed", "run.resume", "grouping.recipe")
_HEARTBEAT = 5.0  # seconds between two updates of the record of a running cell
_LOG_LINES = 20


@dataclass(frozen=True)
class Cell:
    """One training: a recipe and a seed.

    Attributes:
        index: Number of the cell.
        recipe: Name of the recipe.
        seed: Value of `run.seed`.
        folder: Run folder.
        arguments: Arguments of `trainer/main.py`.
    """

    index: int
    recipe: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]

    @property
    def log(self) -> Path:
        """The file with the output of the process."""
        return self.folder / "cell.log"

    def load(self) -> dict[str, Any]:
        """Return the record: `status` (waiting, running, stopped, failed, done), `seconds`, result.

        Raises:
            UserError: The record is not JSON.
        """
        path = self.folder / "cell.json"
        if not path.exists():
            return {"recipe": self.recipe, "seed": self.seed, "status": "waiting", "seconds": 0.0}
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from None

    def save(self, record: dict[str, Any]) -> None:
        """Write the record."""
        write_json(self.folder / "cell.json", record)


def plan_cells(
    config: Path, recipes: Sequence[str], seeds: Sequence[int], out: Path, overrides: Sequence[str]
) -> list[Cell]:
    """Return the cells of a comparison, in the order of the recipes, then of the seeds.

    The keys under `grouping` in the file apply to the recipe that the file names; other recipes
    use their defaults.

    Args:
        config: YAML file of all cells.
        recipes: Names of the recipes.
        seeds: Values of `run.seed`.
        out: Folder of the comparison.
        overrides: `section.key=value` for all cells; `grouping.key=value` for the cells whose
            recipe has the key.

    Raises:
        UserError: A recipe is unknown or named twice, an override sets a key that compare sets or
            that no recipe has, the configuration of a cell is invalid, or its folder holds another
            run.
    """
    load_plugins_of(config, overrides)
    unknown = [recipe for recipe in recipes if recipe not in RECIPES]
    if unknown or not recipes or len(set(recipes)) < len(recipes):
        allowed = ", ".join(RECIPES.names())
        hint = did_you_mean(unknown[0], RECIPES.names()) if unknown else ""
        raise UserError(
            f"--recipes: found {','.join(recipes)!r}; allowed, each once: {allowed}{hint}"
        )
    for override in overrides:
        if override.partition("=")[0] in _CELL_KEYS:
            raise UserError(f"override {override!r}: compare sets this key for every cell")
    by_recipe = _overrides_by_recipe(recipes, overrides)
    cells: list[Cell] = []
    for recipe in recipes:
        for seed in seeds:
            folder = out / recipe / f"seed-{seed}"
            settings = [
                *by_recipe[recipe],
                *(f"run.out={folder}", f"run.seed={seed}", "run.resume=auto"),
                *(f"grouping.recipe={recipe}", "log.progress=false"),
            ]
            RunFolder(folder).check(load_config(config, settings), may_change=False)
            arguments = ("--config", str(config), *settings)
            cells.append(Cell(len(cells), recipe, seed, folder, arguments))
    return cells


def _overrides_by_recipe(recipes: Sequence[str], overrides: Sequence[str]) -> dict[str, list[str]]:
    """Return the overrides of each recipe, without `grouping` keys that the recipe lacks.

    Raises:
        UserError: No recipe has the key of an override.
    """
    sections = recipe_sections()
    by_recipe: dict[str, list[str]] = {recipe: [] for recipe in recipes}
    for override in overrides:
        path = override.partition("=")[0]
        key = path.removeprefix("grouping.")
        matching = [r for r in recipes if key == path or has_value(sections[r], key)]
        if not matching:
            hint = f"renamed to {RENAMED[path]}" if path in RENAMED else "no recipe here has it"
            raise UserError(f"override {override!r}: {path}: {hint}")
        for recipe in matching:
            by_recipe[recipe].append(override)
    return by_recipe


def run_cell(cell: Cell, launch: Path | None) -> dict[str, Any]:
    """Train a cell unless it is done, and write its log and its record to its folder.

    Args:
        cell: Cell to train.
        launch: Configuration file of `accelerate launch`; None trains in one process without it.

    Returns:
        The record with `status` done, stopped (a signal asked the run to save and end) or failed
        (with a `message`).
    """
    record = cell.load()
    if record["status"] == "done":
        return record
    cell.folder.mkdir(parents=True, exist_ok=True)
    earlier_seconds = record["seconds"]
    command = _command(cell, launch)
    record = {"recipe": cell.recipe, "seed": cell.seed, "command": _shown(command)}
    start, earlier_status = time.monotonic(), _run_status(cell)
    with open(cell.log, "ab") as log, _running(command, log) as (process, asked):
        code = None
        while code is None:
            seconds = earlier_seconds + time.monotonic() - start
            cell.save({**record, "status": "running", "seconds": seconds})
            try:
                code = process.wait(_HEARTBEAT)
            except subprocess.TimeoutExpired:
                continue
    record["seconds"] = earlier_seconds + time.monotonic() - start
    status = _run_status(cell)
    ended_as = status.get("state") if status != earlier_status else None
    at_start = bool(asked) and (ended_as == "stopped" or code == STOPPED + signal.SIGUSR1)
    if ended_as == "preempted" or at_start:
        record["status"] = "stopped"
    elif code == 0:
        record |= {"status": "done", **read_result(cell.folder)}
    else:
        record |= {"status": "failed", "exit_code": code, "message": _failure(cell, code, command)}
    cell.save(record)
    return record


def _run_status(cell: Cell) -> dict[str, Any]:
    """Return the content of the run's `status.json`; empty if there is none."""
    try:
        return json.loads((cell.folder / "status.json").read_text())
    except (OSError, ValueError):
        return {}


def _command(cell: Cell, launch: Path | None) -> list[str]:
    launcher = [sys.executable]
    if launch is not None:
        # Port 0 selects a free port: several cells of a job array may run on one machine.
        launcher += ["-m", "accelerate.commands.launch", "--config_file", str(launch)]
        launcher += ["--main_process_port", "0"]
    return [*launcher, str(TRAIN_SCRIPT), *cell.arguments]


@contextmanager
def _running(
    command: list[str],
    log: Any,  # noqa: ANN401 - any binary file
) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """Start a process, and terminate it at the end of the context or when SIGTERM arrives.

    Forward SIGUSR1, which asks a run to save and end, to the process.

    Yields:
        The process, and a list of the signals that were forwarded.
    """
    asked: list[int] = []

    def exit_on_sigterm(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(128 + signal.SIGTERM)

    def forward(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        process.send_signal(number)

    earlier_term = signal.signal(signal.SIGTERM, exit_on_sigterm)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    earlier_usr1 = signal.signal(signal.SIGUSR1, forward)
    try:
        yield process, asked
    finally:
        signal.signal(signal.SIGTERM, earlier_term)
        signal.signal(signal.SIGUSR1, earlier_usr1)
        if process.poll() is None:
            process.terminate()
            process.wait()


def _shown(command: list[str]) -> str:
    return without_secrets(shlex.join(command))


def _failure(cell: Cell, code: int, command: list[str]) -> str:
    last_lines = cell.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    lines = "\n".join(f"    {line}" for line in last_lines)
    return (
        f"cell {cell.index} ({cell.recipe}, seed {cell.seed}) ended with exit code {code}\n"
        f"  command: {_shown(command)}\n  last lines of {cell.log}:\n{lines}"
    )
