"""Compares recipes: every recipe is trained with every seed, in a process and a folder of its own.

A finished cell is not trained again, one that was stopped goes on from its newest checkpoint.
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
from typing import Any, get_args

from trainer.compare.result import read_result
from trainer.config.config import load_config
from trainer.config.grouping import GroupingSection
from trainer.errors import UserError
from trainer.json_file import write_json
from trainer.run_folder import RunFolder

RECIPES: tuple[str, ...] = get_args(GroupingSection.model_fields["recipe"].annotation)
_MAIN = Path(__file__).resolve().parents[1] / "main.py"
_OWN_KEYS = ("run.out", "run.seed", "run.resume", "grouping.recipe")
_HEARTBEAT = 5.0  # seconds between two notes of the time that a cell has taken
_LOG_LINES = 20


@dataclass(frozen=True)
class Cell:
    """One training: a recipe and a seed.

    Attributes:
        folder: Of its run.
        arguments: Of `trainer/main.py`.
    """

    index: int
    recipe: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]

    @property
    def log(self) -> Path:
        """What its process has written."""
        return self.folder / "cell.log"

    def load(self) -> dict[str, Any]:
        """Its record: `status` (waiting, running, stopped, failed, done), `seconds` and results.

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
        """Write its record."""
        write_json(self.folder / "cell.json", record)


def plan_cells(
    config: Path, recipes: Sequence[str], seeds: Sequence[int], out: Path, overrides: Sequence[str]
) -> list[Cell]:
    """The cells of a comparison, the seeds of a recipe one after another.

    Args:
        config: YAML file that all cells share.
        overrides: `section.key=value` for all cells.

    Raises:
        UserError: A recipe is unknown or named twice, an override sets what the cells differ in,
            a cell's configuration is not allowed, or its folder holds another run.
    """
    unknown = [recipe for recipe in recipes if recipe not in RECIPES]
    if unknown or not recipes or len(set(recipes)) < len(recipes):
        allowed = ", ".join(RECIPES)
        raise UserError(f"--recipes: found {','.join(recipes)!r}; allowed, each once: {allowed}")
    for override in overrides:
        if override.partition("=")[0] in _OWN_KEYS:
            raise UserError(f"override {override!r}: compare sets this key for every cell")
    cells: list[Cell] = []
    for recipe in recipes:
        for seed in seeds:
            folder = out / recipe / f"seed-{seed}"
            own = [f"run.out={folder}", f"run.seed={seed}", "run.resume=auto"]
            own += [f"grouping.recipe={recipe}", "log.progress=false"]
            if recipe != "fixed":
                own.append("grouping.groups=null")
            RunFolder(folder).check(load_config(config, [*overrides, *own]))
            arguments = ("--config", str(config), *overrides, *own)
            cells.append(Cell(len(cells), recipe, seed, folder, arguments))
    return cells


def run_cell(cell: Cell, launch: Path | None) -> dict[str, Any]:
    """Train a cell to its end, unless it is done; its log and its record lie in its folder.

    Args:
        launch: Configuration file of `accelerate launch`; None trains in one plain process.

    Returns:
        Its record, with `status` done, stopped or failed; a failed one has a `message`, a stopped
        one was asked to save and end before it was done.
    """
    record = cell.load()
    if record["status"] == "done":
        return record
    cell.folder.mkdir(parents=True, exist_ok=True)
    before = record["seconds"]
    command = _command(cell, launch)
    record = {"recipe": cell.recipe, "seed": cell.seed, "command": shlex.join(command)}
    start, earlier = time.monotonic(), _run_status(cell)
    with open(cell.log, "ab") as log, _running(command, log) as process:
        code = None
        while code is None:
            seconds = before + time.monotonic() - start
            cell.save({**record, "status": "running", "seconds": seconds})
            try:
                code = process.wait(_HEARTBEAT)
            except subprocess.TimeoutExpired:
                continue
    record["seconds"] = before + time.monotonic() - start
    status = _run_status(cell)
    if status != earlier and status.get("state") == "preempted":
        record["status"] = "stopped"
    elif code == 0:
        record |= {"status": "done", **read_result(cell.folder)}
    else:
        record |= {"status": "failed", "exit_code": code, "message": _failure(cell, code, command)}
    cell.save(record)
    return record


def _run_status(cell: Cell) -> dict[str, Any]:
    """What the run says of itself; nothing before it has said something."""
    try:
        return json.loads((cell.folder / "status.json").read_text())
    except (OSError, ValueError):
        return {}


def _command(cell: Cell, launch: Path | None) -> list[str]:
    start = [sys.executable]
    if launch is not None:
        # Port 0 takes any free one: cells of a job array may share a machine.
        start += ["-m", "accelerate.commands.launch", "--config_file", str(launch)]
        start += ["--main_process_port", "0"]
    return [*start, str(_MAIN), *cell.arguments]


@contextmanager
def _running(command: list[str], log: Any) -> Iterator[subprocess.Popen[bytes]]:  # noqa: ANN401
    """A process that does not outlive this one's block, not even where this one is terminated.

    SIGUSR1, which asks for a save and an end, is passed on to it.
    """

    def leave(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(128 + signal.SIGTERM)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    earlier = signal.signal(signal.SIGTERM, leave)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    earlier_user = signal.signal(signal.SIGUSR1, pass_on)
    try:
        yield process
    finally:
        signal.signal(signal.SIGTERM, earlier)
        signal.signal(signal.SIGUSR1, earlier_user)
        if process.poll() is None:
            process.terminate()
            process.wait()


def _failure(cell: Cell, code: int, command: list[str]) -> str:
    last = cell.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    lines = "\n".join(f"    {line}" for line in last)
    return (
        f"cell {cell.index} ({cell.recipe}, seed {cell.seed}) ended with exit code {code}\n"
        f"  command: {shlex.join(command)}\n  last lines of {cell.log}:\n{lines}"
    )
