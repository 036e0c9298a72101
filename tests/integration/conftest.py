"""The two commands inside this process, which saves an interpreter's start, and a run to use."""

import contextlib
import io
import json
import logging
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainer.commands import app as cli

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def _ended(command: Callable[[], object]) -> Ended:
    stdout, stderr = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    code = 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            command()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
    return Ended(code, stdout.getvalue(), stderr.getvalue())


@pytest.fixture
def main_script(monkeypatch, forget_accelerate) -> Callable[..., Ended]:
    """`python trainer/main.py ARGUMENTS`."""

    def run(*arguments: str) -> Ended:
        forget_accelerate()
        script = ROOT / "trainer" / "main.py"
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        return _ended(lambda: runpy.run_path(str(script), run_name="__main__"))

    return run


@pytest.fixture
def dmtg(monkeypatch) -> Callable[..., Ended]:
    """`dmtg ARGUMENTS`."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["dmtg", *map(str, arguments)])
        return _ended(cli.main)

    return run


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Path to content of all files below a folder, but those that tell of every start of a run."""
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("status.json", "timing.jsonl", "rank-0.log")
    }


@pytest.fixture(scope="session")
def run(session_launcher, rooms_yaml, tmp_path_factory):
    """A run with everything that is shown on, as a user starts it; every checkpoint is kept."""
    out = tmp_path_factory.mktemp("end_to_end") / "run"
    overrides = (
        f"run.out={out}", "run.steps=40", "run.checkpoint_every=10", "run.keep_last=9",
        "log.trackers=[tensorboard]", "log.progress=true", "log.every=2", "eval.every=20",
    )  # fmt: skip
    end = session_launcher.train(rooms_yaml, *overrides).finish()
    assert end.code == 0, end.stderr
    return out, end


@pytest.fixture(scope="session")
def records(run):
    return [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def model(run, session_launcher):
    path = run[0] / "exported" / "model.safetensors"
    end = session_launcher.dmtg("export", str(run[0]), "--out", str(path), "--json")
    assert end.code == 0, end.stderr
    return path, json.loads(end.stdout.splitlines()[-1])
