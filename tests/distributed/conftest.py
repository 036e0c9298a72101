"""Runs that several tests look at, trained by as few launches as possible."""

import json
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.cells import PLAIN, Cell, train
from tests.distributed.train_cells import train_job
from trainer.monitoring.logs import setup_logging

SCRIPT = Path(__file__).with_name("train_cells.py")
WANTED = pytest.StashKey[list[Cell]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Ask the modules of the selected tests which runs these look at."""
    wanted: dict[Cell, None] = {}
    for item in session.items:
        cells = getattr(getattr(item, "module", None), "cells", None)
        if callable(cells) and item.get_closest_marker("distributed"):
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            wanted.update(dict.fromkeys(cells(**parameters)))
    session.config.stash[WANTED] = list(wanted)


class Runs:
    """Trains cells when a test asks for one of them, with all others that a launch can train.

    A launch ends where a run fails: that run counts as failed, the others are launched again. It
    may take the first of two numbers of seconds, and the second for each of its runs.
    """

    def __init__(
        self, wanted, config: Path, root: Path, launcher, like_a_process, seconds=(600, 60)
    ) -> None:
        self._wanted, self._config, self._root = wanted, config, root
        self._launcher, self._like_a_process = launcher, like_a_process
        self._seconds = seconds
        self._ended: set[Cell] = set()
        self._failures: dict[Cell, str] = {}

    def __call__(self, cell: Cell) -> Path:
        """The folder of a finished run."""
        train(cell, self._wanted, self._ended, self._launch)
        if cell in self._failures:
            pytest.fail(f"{cell.launch}, {cell.name}: {self._failures[cell]}")
        return cell.out(self._root)

    def _can_begin(self, cell):
        failed = next((s for s in cell.ancestors() if s in self._failures), None)
        if failed is not None:
            self._failures[cell] = f"{failed.name}, which it continues, failed"
            self._ended.add(cell)
        return failed is None

    def _launch(self, launch, batch):
        batch = [cell for cell in batch if self._can_begin(cell)]
        if not batch:
            return
        jobs = [cell.job(self._root) for cell in batch]
        failure = self._here(jobs) if launch == PLAIN else self._there(launch, jobs)
        trained = [cell for cell in batch if (cell.out(self._root) / "record-0.json").exists()]
        self._ended.update(trained)
        if failure is not None:
            culprit = batch[min(len(trained), len(batch) - 1)]
            self._failures[culprit] = failure
            self._ended.add(culprit)

    def _here(self, jobs) -> str | None:
        try:
            for job in jobs:
                with self._like_a_process():
                    setup_logging(0, 1)
                    train_job(self._config, job)
        except Exception:
            return traceback.format_exc()
        return None

    def _there(self, launch, jobs) -> str | None:
        path = self._root / f"{launch}-{len(self._ended)}.json"
        path.write_text(json.dumps(jobs))
        try:
            end = self._launcher.start(
                str(self._config), str(path), engine=launch.engine, script=SCRIPT,
                flags=("--num_processes", str(launch.num_processes)),
            ).finish(self._seconds[0] + self._seconds[1] * len(jobs))  # fmt: skip
        except pytest.fail.Exception as error:
            return str(error)
        return None if end.code == 0 else end.stderr[-8000:]


@pytest.fixture(scope="session")
def trained(
    request, rooms_yaml, tmp_path_factory, session_launcher, like_a_process
) -> Callable[[Cell], Path]:
    """Train a cell, or find it trained; the folder of the run."""
    wanted, root = request.config.stash[WANTED], tmp_path_factory.mktemp("cells")
    return Runs(wanted, rooms_yaml, root, session_launcher, like_a_process)
