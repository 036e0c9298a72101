"""The two commands inside this process, which saves an interpreter's start, and a run to use."""

import contextlib
import io
import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.processes import ROOT, SETTINGS
from trainer.commands import app as cli


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def in_this_process(like_a_process) -> Callable[[list[str], Callable[[], object]], Ended]:
    """Call a command's function with the arguments that it finds in `sys.argv`."""

    def run(argv: list[str], command: Callable[[], object]) -> Ended:
        stdout, stderr, code = io.StringIO(), io.StringIO(), 0
        with (
            like_a_process(),
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            patch.setattr(sys, "argv", argv)
            patch.setattr(sys, "path", list(sys.path))
            for name, value in SETTINGS.items():  # of the processes that the command starts
                patch.setenv(name, value)
            try:
                command()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        return Ended(code, stdout.getvalue(), stderr.getvalue())

    return run


@pytest.fixture(scope="session")
def main_script(in_this_process) -> Callable[..., Ended]:
    """`python trainer/main.py ARGUMENTS`."""
    script = str(ROOT / "trainer" / "main.py")

    def run(*arguments: object) -> Ended:
        command = partial(runpy.run_path, script, run_name="__main__")
        return in_this_process([script, *map(str, arguments)], command)

    return run


@pytest.fixture(scope="session")
def dmtg(in_this_process) -> Callable[..., Ended]:
    """`dmtg ARGUMENTS`."""
    return lambda *arguments: in_this_process(["dmtg", *map(str, arguments)], cli.main)


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Path to content of all files below a folder, but those that tell of every start of a run."""
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("status.json", "timing.jsonl", "rank-0.log")
    }


@pytest.fixture(scope="session")
def run(main_script, rooms_yaml, tmp_path_factory):
    """A run with everything that is shown on; every checkpoint is kept."""
    out = tmp_path_factory.mktemp("end_to_end") / "run"
    overrides = (
        f"run.out={out}", "run.steps=40", "run.checkpoint_every=10", "run.keep_last=9",
        "log.trackers=[tensorboard]", "log.progress=true", "log.every=2", "eval.every=20",
    )  # fmt: skip
    end = main_script("--config", rooms_yaml, *overrides)
    assert end.code == 0, end.stderr
    return out, end


@pytest.fixture(scope="session")
def records(run):
    return [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def model(run, dmtg):
    path = run[0] / "exported" / "model.safetensors"
    end = dmtg("export", run[0], "--out", path, "--json")
    assert end.code == 0, end.stderr
    return path, json.loads(end.stdout.splitlines()[-1])
