"""The cells of a comparison: each is trained in a separate process and folder.

A finished cell is not trained again; a stopped cell resumes from its newest checkpoint.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from dmtg.secrets import without_secrets
from trainer.compare.result import read_result
from trainer.errors import STOPPED, UserError
from trainer.json_file import write_json
from trainer.launch_files import TRAIN_SCRIPT

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
        label: Of the row of the comparison that it belongs to; empty if that is the recipe.
        branches: Number of branches, where the comparison varies it.
        part: Number of this run and number of runs, where each trains some of the tasks.
    """

    index: int
    recipe: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    label: str = ""
    branches: int | None = None
    part: tuple[int, int] | None = None

    @property
    def row(self) -> str:
        """The label of its row."""
        return self.label or self.recipe

    @property
    def name(self) -> str:
        """What the cell is called in messages, without the seed."""
        return f"{self.row}, part {self.part[0]} of {self.part[1]}" if self.part else self.row

    @property
    def identity(self) -> dict[str, Any]:
        """The values of its record that say which cell it is."""
        part = list(self.part or ())
        more = {"label": self.label, "branches": self.branches, "part": part}
        values = {key: value for key, value in more.items() if value}
        return {"recipe": self.recipe, "seed": self.seed, **values}

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
            return {**self.identity, "status": "waiting", "seconds": 0.0}
        try:
            return {**json.loads(path.read_text()), **self.identity}
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from None

    def save(self, record: dict[str, Any]) -> None:
        """Write the record."""
        write_json(self.folder / "cell.json", record)


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
    record = {**cell.identity, "command": _shown(command)}
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
        f"cell {cell.index} ({cell.name}, seed {cell.seed}) ended with exit code {code}\n"
        f"  command: {_shown(command)}\n  last lines of {cell.log}:\n{lines}"
    )
