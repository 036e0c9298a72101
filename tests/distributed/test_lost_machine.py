"""Two launchers as two machines, of which one is lost, or cut off in the middle of a step."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from trainer.checkpoints.checkpoint import newest_checkpoint

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 12.0  # seconds that ranks wait for each other
SLACK = 75.0  # until a launcher has ended what does not end by itself, on a busy machine
LONG = "run.steps=100000"


@dataclass
class Machine:
    """One launcher with one process."""

    popen: subprocess.Popen
    log: Path

    def end(self, seconds: float) -> str:
        """Wait for a failure; the one message."""
        code = self.popen.wait(seconds)
        text = self.log.read_text(errors="replace")
        assert code != 0, text[-4000:]
        found = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(found) == 1, text[-6000:]
        return found[0]

    def kill(self) -> None:
        """SIGKILL to all of it, at once as when the power fails."""
        if self.popen.poll() is None:
            tree = psutil.Process(self.popen.pid).children(recursive=True)
            for process in [psutil.Process(self.popen.pid), *tree]:
                process.send_signal(signal.SIGKILL)
            self.popen.wait(20)


@pytest.fixture
def start(rooms_yaml, tmp_path):
    """Starts one of two machines."""
    started = []

    def run(rank, engine, *overrides, address="127.0.0.1", port, prefix=(), settings=None):
        command = [
            *prefix, sys.executable, "-m", "accelerate.commands.launch",
            "--config_file", str(ROOT / f"accelerate_configs/{engine}.yaml"),
            "--num_machines", "2", "--machine_rank", str(rank), "--num_processes", "2",
            "--main_process_ip", address, "--main_process_port", str(port),
            *(("--deepspeed_multinode_launcher", "standard") if "zero" in engine else ()),
            str(ROOT / "trainer/main.py"), "--config", str(rooms_yaml),
            f"run.out={tmp_path / 'run'}", "run.precision=fp32", "run.resume=auto",
            f"run.timeout_seconds={TIMEOUT}", "run.stall_seconds=300", "run.checkpoint_every=2",
            *overrides,
        ]  # fmt: skip
        log = tmp_path / f"machine-{rank}-{len(started)}.log"
        own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
        with open(log, "wb") as file:
            popen = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                cwd=tmp_path,
                start_new_session=True,
                env={**os.environ, **own, **(settings or {})},
            )
        started.append(Machine(popen, log))
        return started[-1]

    yield run
    for machine in started:
        machine.kill()


def wait_for(path: Path, machines: list[Machine], seconds: float = 180) -> None:
    """Wait until a checkpoint is written; no machine may end before."""
    end = time.monotonic() + seconds
    while not path.exists():
        dead = [m.log.read_text()[-3000:] for m in machines if m.popen.poll() is not None]
        assert not dead and time.monotonic() < end, dead
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp_cpu", "zero2_cpu"])
def test_the_rendezvous_host_is_gone(engine, start, tmp_path, free_port):
    port = free_port()
    machines = [start(rank, engine, LONG, port=port) for rank in (0, 1)]
    wait_for(tmp_path / "run/checkpoints/step-000000004", machines)
    machines[0].kill()
    message = machines[1].end(TIMEOUT + SLACK)
    host = re.escape(socket.gethostname())
    assert re.search(rf"rank 1 of 2 on {host}: .*the rendezvous host does not answer", message)
    assert newest_checkpoint(tmp_path / "run/checkpoints") is not None


@dataclass
class Network:
    """Two network namespaces and the link between them: 10.231.7.1 and 10.231.7.2."""

    names: tuple[str, str]
    links: tuple[str, str]
    address: str = "10.231.7.1"

    def settings(self, rank: int) -> dict[str, str]:
        """What gloo must know in a namespace."""
        return {"GLOO_SOCKET_IFNAME": self.links[rank], "TP_SOCKET_IFNAME": self.links[rank]}

    def inside(self, rank: int) -> tuple[str, ...]:
        """The begin of a command."""
        return ("ip", "netns", "exec", self.names[rank])

    def switch(self, state: str) -> None:
        """Cut the link, or mend it."""
        ip(*self.inside(0)[1:], "ip", "link", "set", self.links[0], state)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def network() -> Iterator[Network]:
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` command")
    tag = f"{os.getpid() % 100000}"
    found = Network((f"dmtg{tag}a", f"dmtg{tag}b"), (f"vd{tag}a", f"vd{tag}b"))
    try:
        for name in found.names:
            ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
    try:
        ip("link", "add", found.links[0], "type", "veth", "peer", "name", found.links[1])
        for rank, (name, link) in enumerate(zip(found.names, found.links, strict=True)):
            ip("link", "set", link, "netns", name)
            inside = found.inside(rank)[1:]
            ip(*inside, "ip", "addr", "add", f"10.231.7.{rank + 1}/24", "dev", link)
            ip(*inside, "ip", "link", "set", link, "up")
            ip(*inside, "ip", "link", "set", "lo", "up")
            _name_hosts(name)
        yield found
    finally:
        for name in found.names:
            ip("netns", "delete", name)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)


def _name_hosts(namespace: str) -> None:
    """What `ip netns exec` puts into /etc: no name server is in reach, and asking takes minutes."""
    folder = Path("/etc/netns") / namespace
    folder.mkdir(parents=True)
    hosts = [f"127.0.0.1 localhost {socket.gethostname()}", "10.231.7.1 node0", "10.231.7.2 node1"]
    (folder / "hosts").write_text("\n".join(hosts) + "\n")
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp_cpu", "zero2_cpu"])
def test_the_link_is_cut_in_the_middle_of_a_step(engine, start, network, tmp_path, free_port):
    """Both sides end, each with its own view, and go on once it is mended."""

    def both(*overrides):
        port = free_port()
        return [
            start(
                rank, engine, *overrides, address=network.address, port=port,
                prefix=network.inside(rank), settings=network.settings(rank),
            )
            for rank in (0, 1)
        ]  # fmt: skip

    machines = both(LONG)
    folder = tmp_path / "run/checkpoints"
    wait_for(folder / "step-000000004", machines)
    network.switch("down")
    messages = [machine.end(TIMEOUT + SLACK) for machine in machines]
    host = re.escape(socket.gethostname())
    assert re.search(rf"rank 0 of 2 on {host}: lost .* no heartbeat from rank 1", messages[0])
    assert re.search(rf"rank 1 of 2 on {host}: lost .* rendezvous host does not", messages[1])
    newest = newest_checkpoint(folder)
    network.switch("up")
    step = int(newest.name.removeprefix("step-"))
    machines = both(LONG)
    wait_for(folder / f"step-{step + 4:09d}", machines)
    assert f"continuing from {newest}" in machines[0].log.read_text()
