"""Commands in processes of their own, as a user starts them."""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
TIMM = Path(sys.prefix) / "timm"  # where `make setup` installs it, see docs/encoders.md
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(ROOT),
    "PYTHONFAULTHANDLER": "1",
}
_FORK = multiprocessing.get_context("fork")
_POLL_SECONDS = 0.005  # between two looks at what a process has written
_OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Finished:
    """How a process ended."""

    code: int
    stdout: str
    stderr: str


class Process:
    """A running command in the test's folder, with all that it starts."""

    def __init__(
        self, command: list[str], folder: Path, settings: Mapping[str, str] = SETTINGS
    ) -> None:
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
                env={**inherited, **settings},
            )

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def worker(self, rank: int) -> psutil.Process:
        """The process that the launcher has given this rank."""
        return next(p for p in self.tree()[1:] if p.environ().get("RANK") == str(rank))

    def wait_for(self, path: Path, seconds: float = 180, text: str = "") -> None:
        """Wait until there is a file or folder, and a text in the file.

        Fails when the process ends before that, or after so many seconds.
        """
        end = time.monotonic() + seconds
        while not path.exists() or text not in (path.read_text() if text else ""):
            if not self.running or time.monotonic() > end:
                pytest.fail(f"{path} did not come: {text}\n{self._text(1)[-4000:]}")
            time.sleep(_POLL_SECONDS)

    def wait_for_step(self, run: Path, step: int) -> None:
        """Wait until a run has logged a step."""
        self.wait_for(run / "metrics.jsonl", text=f'"step": {step},')

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
            tree = self.tree()[::-1]
            _send(signal.SIGABRT, tree)  # Python's fault handler shows where they are
            psutil.wait_procs(tree, timeout=3)
            self.kill()
            pytest.fail(f"no end after {timeout} s\n{self._text(1)[-8000:]}")
        return Finished(code, self._text(0), self._text(1))

    def _text(self, number: int) -> str:
        return self._outputs[number].read_text(errors="replace")


def _send(number: signal.Signals, processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def run_forked(target: Callable[..., object], *arguments: tuple[object, ...]) -> None:
    """Call a function in a forked process for each tuple of arguments, all at once.

    A process that raises, or takes over a minute, fails the test.
    """
    started = [_FORK.Process(target=target, args=each) for each in arguments]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=60)
    assert [process.exitcode for process in started] == [0] * len(started)


def run_together(target: Callable[..., object], *arguments: object, number: int = 4) -> None:
    """`run_forked`, where each process waits at the barrier that is its last argument."""
    together = _FORK.Barrier(number)
    run_forked(target, *[(*arguments, together)] * number)


@contextlib.contextmanager
def mounted(*arguments: str, at: Path) -> Iterator[None]:
    """Something else over a folder."""
    done = subprocess.run(["mount", *arguments, str(at)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _command(script: Path, engine: str | None, flags: Sequence[str]) -> list[str]:
    if engine is None:
        return [sys.executable, str(script)]
    config = ROOT / "accelerate_configs" / f"{engine}.yaml"
    port = str(unused_port())
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    return [*launcher, "--main_process_port", port, *flags, str(script)]


class Launcher:
    """Starts commands as a user would, in a folder that is not the repository.

    Args:
        folder: Their working directory.
        with_gpus: Whether they may see the GPUs of this machine.
    """

    def __init__(self, folder: Path, *, with_gpus: bool = False) -> None:
        self._folder = folder
        self._settings = dict(SETTINGS)
        if with_gpus:
            del self._settings["CUDA_VISIBLE_DEVICES"]
        folder.mkdir(parents=True, exist_ok=True)

    def start(
        self, *arguments: str, engine: str | None = None, flags: Sequence[str] = (), script: Path
    ) -> Process:
        """Start a script, in one process or under a file of accelerate_configs/.

        Args:
            flags: Of the launcher, over what the file says.
        """
        command = [*_command(script, engine, flags), *arguments]
        return Process(command, self._folder, self._settings)

    def train(
        self, config: Path, *overrides: str, engine: str | None = None, flags: Sequence[str] = ()
    ) -> Process:
        """Start a training run."""
        script = ROOT / "trainer" / "main.py"
        arguments = ("--config", str(config), *overrides)
        return self.start(*arguments, engine=engine, flags=flags, script=script)

    def python(self, code: str, *arguments: str) -> Finished:
        """Run Python code in an interpreter of its own."""
        command = [sys.executable, "-c", code, *arguments]
        return Process(command, self._folder, self._settings).finish()

    def dmtg(self, *arguments: str) -> Finished:
        """Run the console command."""
        return self.python("from trainer.commands.app import main; main()", *arguments)
