"""Small data written once per session, a configuration for it, and real processes to train with."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState

from data_pipelines.synthetic.digits import write_digits
from data_pipelines.synthetic.rooms import write_rooms
from trainer.config.config import Config, load_config
from trainer.engines.accelerator import make_accelerator
from trainer.loop import train
from trainer.session import Session, start_session

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("depth_zbuffer", "normal", "segment_semantic", "has_sphere", "num_solids", "camera_pitch")
_SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(ROOT),
    "PYTHONFAULTHANDLER": "1",
}
# Tiny networks gain nothing from threads, and a run here is to equal one in a process below.
torch.set_num_threads(1)
_OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(scope="session")
def rooms(tmp_path_factory) -> Path:
    """36 train rooms in 4 shards and 12 val rooms in 2, 32 pixels, every fifth label missing.

    Kept as PNG, so that a test can read them without this project's code.
    """
    root = tmp_path_factory.mktemp("rooms") / "shards"
    options = {"missing": 0.2, "val_fraction": 0.25, "samples_per_shard": 10, "portable": True}
    write_rooms(root, 48, 32, 3, **options, progress=False)
    return root


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """64 train and 24 val pairs of digits."""
    root = tmp_path_factory.mktemp("digits") / "shards"
    write_digits(root, train=64, val=24, progress=False)
    return root


@pytest.fixture(scope="session")
def rooms_yaml(rooms, tmp_path_factory) -> Path:
    """A run of seconds on the rooms: 3 dense and 3 scalar tasks, 3 branches, without BatchNorm."""
    tree = {
        "run": {"out": "nowhere", "steps": 30, "seed": 5, "precision": "fp32"},
        "data": {"shards": str(rooms), "size": [32, 32], "global_batch": 8, "workers": 0},
        # The gradient of l1 jumps where a prediction meets its label, which lets rounding grow.
        "tasks": {
            "names": list(TASKS),
            "define": {
                name: {"loss": "mse"} for name in ("depth_zbuffer", "normal", "camera_pitch")
            },
        },
        "model": {
            "branches": 3,
            "dense_widths": [8],
            "encoder": {
                "name": "backbone",
                "options": {
                    "model_type": "convnextv2",
                    "hidden_sizes": [8, 16],
                    "depths": [1, 1],
                    "patch_size": 4,
                    "num_stages": 2,
                },
            },
        },
        "grouping": {
            "recipe": "published",
            "lr": 0.1,
            "noise": "shared",
            "temperature": {"start": 2.0, "end": 0.5},
        },
        "pruning": {"threshold": 0.2, "start": 0.2, "finish": 0.8, "every": 3},
        # About half of the steps are clipped, so the scale of the gradient shows in the moments.
        "optim": {"lr": 3e-4, "clip": 12.0, "warmup": 3, "weight_decay": 0.01},
        "eval": {"batch": 5},
        "log": {"every": 1, "trackers": [], "progress": False},
    }
    path = tmp_path_factory.mktemp("config") / "rooms.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def rooms_config(rooms_yaml, tmp_path) -> Callable[..., Config]:
    """The configuration of `rooms_yaml` with overrides; it writes below the test's own folder."""

    def make(*overrides: str) -> Config:
        return load_config(rooms_yaml, [f"run.out={tmp_path / 'run'}", *overrides])

    return make


@pytest.fixture
def forget_accelerate(monkeypatch) -> Iterator[Callable[[], None]]:
    """Drops accelerate's process-wide state, so that a test may set its own, on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _forget_accelerate()
    yield _forget_accelerate
    _forget_accelerate()


def _forget_accelerate() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@dataclass(frozen=True)
class Finished:
    """How a process ended."""

    code: int
    stdout: str
    stderr: str


class Process:
    """A running command in the test's folder, with all that it starts."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._outputs = [folder / f"process-{time.monotonic_ns()}.{n}" for n in ("out", "err")]
        inherited = {k: v for k, v in os.environ.items() if k not in _OF_A_LAUNCHER}
        with open(self._outputs[0], "wb") as out, open(self._outputs[1], "wb") as err:
            self._popen = subprocess.Popen(
                command,
                cwd=folder,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**inherited, **_SETTINGS},
            )

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def worker(self, rank: int) -> psutil.Process:
        """The process that the launcher has given this rank."""
        return next(p for p in self.tree()[1:] if p.environ().get("RANK") == str(rank))

    def send(self, number: signal.Signals) -> None:
        """A signal to the command itself."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the process and all its descendants; launchers give workers own sessions."""
        tree = self.tree()
        _send(signal.SIGKILL, tree)
        psutil.wait_procs(tree, timeout=20)
        self._popen.wait(20)

    def tree(self) -> list[psutil.Process]:
        """The command and all that it has started."""
        try:
            parent = psutil.Process(self._popen.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def finish(self, timeout: float = 240) -> Finished:
        """Wait for the end; a process that takes too long is killed and fails the test."""
        try:
            code = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            _send(signal.SIGABRT, self.tree()[::-1])  # Python's fault handler shows where they are
            time.sleep(3)
            self.kill()
            pytest.fail(f"no end after {timeout} s\n{self._text(1)[-8000:]}")
        return Finished(code, self._text(0), self._text(1))

    def _text(self, number: int) -> str:
        return self._outputs[number].read_text(errors="replace")


def _send(number: signal.Signals, processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _command(script: Path, engine: str | None, flags: Sequence[str]) -> list[str]:
    if engine is None:
        return [sys.executable, str(script)]
    config = ROOT / "accelerate_configs" / f"{engine}.yaml"
    port = str(_free_port())
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    return [*launcher, "--main_process_port", port, *flags, str(script)]


class Launcher:
    """Starts commands as a user would, in a folder that is not the repository."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def start(
        self, *arguments: str, engine: str | None = None, flags: Sequence[str] = (), script: Path
    ) -> Process:
        """Start a script, in one process or under a file of accelerate_configs/.

        Args:
            flags: Of the launcher, over what the file says.
        """
        return Process([*_command(script, engine, flags), *arguments], self._folder)

    def train(
        self, config: Path, *overrides: str, engine: str | None = None, flags: Sequence[str] = ()
    ) -> Process:
        """Start a training run."""
        script = ROOT / "trainer" / "main.py"
        arguments = ("--config", str(config), *overrides)
        return self.start(*arguments, engine=engine, flags=flags, script=script)

    def python(self, code: str, *arguments: str) -> Finished:
        """Run Python code in an interpreter of its own."""
        return Process([sys.executable, "-c", code, *arguments], self._folder).finish()

    def dmtg(self, *arguments: str) -> Finished:
        """Run the console command."""
        return self.python("from trainer.commands.app import main; main()", *arguments)


@pytest.fixture
def free_port() -> Callable[[], int]:
    return _free_port


@pytest.fixture
def launcher(tmp_path) -> Launcher:
    return Launcher(tmp_path / "cwd")


@pytest.fixture(scope="session")
def session_launcher(tmp_path_factory) -> Launcher:
    return Launcher(tmp_path_factory.mktemp("cwd"))


@pytest.fixture
def train_here(forget_accelerate) -> Callable[[Config], Session]:
    """Train in this process, as trainer/main.py does, and return the session at its end."""

    def run(config: Config) -> Session:
        forget_accelerate()
        session = start_session(config, make_accelerator(config))
        try:
            train(session)
        finally:
            session.log.close()
        return session

    return run
