"""Ctrl-C in a terminal: once saves and says how to go on, twice ends at once."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.processes import ROOT, SETTINGS
from trainer.monitoring.status import read_status

pytestmark = pytest.mark.distributed

DMTG = (sys.executable, "-c", "from trainer.commands.app import main; main()")
LAUNCHER = (sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0")
CTRL_C = b"\x03"


def _in_the_foreground() -> None:
    """Make the terminal that of this process, and let Ctrl-C reach it.

    A shell may have started the tests with SIGINT ignored, as it does in the background.
    """
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A command in a terminal of its own, of 80 columns, as the foreground job of its shell."""

    def __init__(self, command, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        self._popen = subprocess.Popen(
            command,
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_in_the_foreground,
            env={**inherited, **SETTINGS},
        )
        os.close(slave)
        self._output = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 4096)
            except OSError:  # no process has the terminal any more
                return
            if not data:
                return
            self._output += data

    @property
    def text(self) -> str:
        shown = self._output.decode(errors="replace").replace("\r\n", "\n")
        return shown.replace("^C", "")  # which the terminal writes itself

    def press(self) -> None:
        os.write(self._master, CTRL_C)

    def wait_for(self, condition, seconds=240) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self._popen.poll() is None and time.monotonic() < end, self.text[-4000:]
            time.sleep(0.01)

    def finish(self, seconds=240) -> int:
        try:
            code = self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"no end after {seconds} s\n{self.text[-4000:]}")
        self._reader.join(20)
        return code

    def tree(self) -> list[psutil.Process]:
        parent = psutil.Process(self._popen.pid)
        return [parent, *parent.children(recursive=True)]

    def kill(self) -> None:
        if self._popen.poll() is None:
            for process in self.tree():
                process.kill()
            self._popen.wait(20)
        os.close(self._master)


@pytest.fixture
def start(rooms_yaml, tmp_path):
    """Start a long run in a terminal, and return it when it has logged some steps."""
    terminals = []

    def run(*command, overrides=(), options=()):
        out = tmp_path / "run"
        arguments = (str(rooms_yaml), f"run.out={out}", "run.steps=100000", "log.progress=true")
        terminal = Terminal(
            [*command, *arguments, "run.checkpoint_every=100000", *overrides, *options],
            tmp_path / "cwd",
        )
        terminals.append(terminal)
        metrics = out / "metrics.jsonl"
        terminal.wait_for(lambda: metrics.exists() and '"step": 5,' in metrics.read_text())
        return terminal

    yield run
    for terminal in terminals:
        terminal.kill()


def saved_step(out: Path) -> int:
    return int((out / "checkpoints" / "latest").read_text().removeprefix("step-"))


def stopped_at(text: str) -> int:
    return int(re.search(r"interrupted by Ctrl-C after step (\d+); the run is saved", text)[1])


SEVERAL = (
    pytest.param(("--processes", "2"), id="two processes", marks=pytest.mark.slow),
    pytest.param(("--engine", "zero2_cpu"), id="zero2_cpu", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("options", [pytest.param((), id="one process"), *SEVERAL])
def test_once_saves_and_says_how_to_go_on(options, start, rooms_yaml, tmp_path):
    out = tmp_path / "run"
    terminal = start(*DMTG, "train", overrides=("data.workers=1",), options=options)
    terminal.press()
    assert terminal.finish() == 130
    step = stopped_at(terminal.text)
    assert step >= 5 and saved_step(out) == step
    assert "Ctrl-C: saving after this step; press it again to end at once" in terminal.text
    assert "Traceback" not in terminal.text and "error" not in terminal.text.lower()
    found = read_status(out)
    assert (found["state"], found["cause"], found["step"]) == ("preempted", "SIGINT", step)
    (line,) = re.findall(r"^continue: (.*)$", terminal.text, re.MULTILINE)
    assert line.split()[:3] == ["dmtg", "train", str(rooms_yaml)]
    assert line.endswith(" ".join(("run.resume=auto", *options)))
    assert f"run.out={out}" in line.split()
    more = [*DMTG, *line.split()[1:], f"run.steps={step + 2}"]
    again = Terminal(more, tmp_path / "cwd")
    code = again.finish()
    assert code == 2 and "its groups are decided after step 80000" in again.text
    again.kill()


@pytest.mark.parametrize("options", [pytest.param((), id="one process"), *SEVERAL])
def test_twice_ends_at_once(options, start, tmp_path, monkeypatch):
    """Also while a step does not end."""
    place = tmp_path / "cwd"
    place.mkdir(exist_ok=True)
    (place / "slow_save.py").write_text(
        "import time, trainer.checkpoints.writer as writer\n"
        "def save(*a, **k): open('saving', 'w').close(); time.sleep(600)\n"
        "writer.save_checkpoint = save\n"
    )
    monkeypatch.setitem(SETTINGS, "PYTHONPATH", f"{ROOT}:{place}")
    terminal = start(*DMTG, "train", overrides=("plugins=[slow_save]",), options=options)
    processes = terminal.tree()
    terminal.press()
    terminal.wait_for((place / "saving").exists)
    time.sleep(1.5)  # what comes within a second is of the same Ctrl-C
    begun = time.monotonic()
    terminal.press()
    assert terminal.finish() == 130
    assert time.monotonic() - begun < 120, "neither the save nor the launcher is waited for"
    assert terminal.text.count("interrupted twice, ended at once") == 1
    assert "Traceback" not in terminal.text
    assert not (tmp_path / "run" / "checkpoints" / "latest").exists()
    assert read_status(tmp_path / "run")["state"] == "stopped"
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive, "none goes on alone"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["cpu", "ddp_cpu"])
def test_under_the_launcher_of_accelerate(engine, start, tmp_path):
    """Its own traceback cannot be kept away there; the run is saved all the same."""
    file = str(ROOT / "accelerate_configs" / f"{engine}.yaml")
    script = str(ROOT / "trainer" / "main.py")
    terminal = start(*LAUNCHER, "--config_file", file, script, "--config")
    workers = terminal.tree()[1:]
    terminal.press()
    terminal.finish()
    psutil.wait_procs(workers, timeout=60)
    assert saved_step(tmp_path / "run") >= 5
    assert read_status(tmp_path / "run")["state"] == "preempted"


def test_the_bar_and_the_lines_above_it(start):
    terminal = start(*DMTG, "train")
    terminal.press()
    terminal.finish()
    lines = terminal.text.splitlines()
    logged = [line for line in lines if " INFO trainer" in line]
    assert logged and all(re.match(r"(.*\r)?\d{4}-\d\d-\d\d ", line) for line in logged)
    bar = r"step +\d+/100000 +\d+% \|[^|]*\| [\d:?]+ left, loss [\d.]+, temper"
    assert re.search(bar, terminal.text), terminal.text[-2000:]
    assert all(len(part) <= 80 for line in lines for part in line.split("\r") if "left" in part)
