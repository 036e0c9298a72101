"""Whatever happens to one of two ranks, both end soon, with one message and a good checkpoint."""

import re
import shutil
import signal
import socket
import tarfile
from pathlib import Path

import psutil
import pytest

from tests.distributed.cells import Cell, Launch
from tests.processes import mounted
from trainer.checkpoints.checkpoint import load_checkpoint, newest_checkpoint

pytestmark = pytest.mark.distributed

SLOW_DDP, SLOW_ZERO2 = (
    pytest.param(name, marks=pytest.mark.slow) for name in ("ddp_cpu", "zero2_cpu")
)
SCRIPT = Path(__file__).with_name("faulty_main.py")
TIMEOUT = 12.0  # seconds that ranks wait for each other
SLACK = 60.0  # until a busy machine has ended all
RUN = ("run.steps=12", "run.checkpoint_every=2", "run.precision=fp32", "optim.max_grad_norm=null")
HOST = re.escape(socket.gethostname())


def agreeing(engine: str) -> Cell:
    """The run of processes whose clocks agree."""
    return Cell(Launch(engine), "clocks", RUN)


def cells(skewed=None, **_):
    return [agreeing(skewed)] if skewed else ()


class Fault:
    """A run with a fault: how it ended, and how many seconds that took."""

    def __init__(self, process, out: Path) -> None:
        self._process, self.out = process, out

    def wait_for_step(self, step: int) -> list[psutil.Process]:
        """Wait until a checkpoint is written; the workers by rank."""
        self._process.wait_for(self.out / f"checkpoints/step-{step:09d}")
        return [self._process.worker(rank) for rank in (0, 1)]

    def message(self, seconds: float = 240, code: int = 1) -> str:
        """The one message of a run that fails within so many seconds."""
        end = self._process.finish(seconds)
        assert end.code == code, end.stderr[-4000:]
        found = [line for line in end.stderr.splitlines() if line.startswith("error: ")]
        assert len(found) == 1, end.stderr[-6000:]
        self.stderr = end.stderr
        return found[0]

    def send(self, number: signal.Signals) -> None:
        """A signal to the launcher."""
        self._process.send(number)

    def newest(self) -> int:
        """The step of the newest checkpoint, which is whole."""
        checkpoint = load_checkpoint(newest_checkpoint(self.out / "checkpoints"))
        assert all(bool(w.isfinite().all()) for w in checkpoint.state.weights.values())
        return checkpoint.progress.step


@pytest.fixture
def start(launcher, rooms_yaml, tmp_path):
    def run(fault: str | None, *overrides: str, engine: str, out: Path = tmp_path / "run") -> Fault:
        timeout = (f"run.timeout_seconds={TIMEOUT}", "run.stall_seconds=200")
        arguments = ("--config", str(rooms_yaml), f"run.out={out}", *RUN, *timeout, *overrides)
        if fault is None:
            return Fault(launcher.train(rooms_yaml, *arguments[2:], engine=engine), out)
        return Fault(launcher.start(fault, *arguments, engine=engine, script=SCRIPT), out)

    return run


@pytest.mark.parametrize("engine", ["ddp_cpu", SLOW_ZERO2])
def test_one_rank_is_killed(engine, start):
    fault = start("kill:1:5", engine=engine)
    message = fault.message()
    assert re.search(
        rf"rank 0 of 2 on {HOST}: lost contact with other ranks at step \d, \w+.*"
        rf"no heartbeat from rank 1 on {HOST} last seen at \w+",
        message,
    )
    assert fault.newest() == 4


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp_cpu", "zero2_cpu"])
def test_one_rank_is_stopped(engine, start):
    """Its connections stay open: only the timeout tells."""
    fault = start("stop:1:5", engine=engine)
    fault.wait_for_step(4)
    message = fault.message(TIMEOUT + SLACK)
    assert re.search(rf"rank 0 .*no heartbeat from rank 1 on {HOST} last seen at \w+", message)
    assert fault.newest() == 4


@pytest.mark.slow
def test_the_data_of_one_rank_stays_away(start):
    """It is alive, so the other tells what it is at."""
    message = start("data:1:5", engine="ddp_cpu").message()
    assert re.search(
        rf"rank 0 .*: this rank was at step 5, training, rank 1 on {HOST} at step 5, reading data "
        r"\(.*Timed out",
        message,
    )


@pytest.mark.slow
def test_a_process_that_stands_still_ends_itself(launcher, rooms_yaml, tmp_path):
    """Also where there is no other rank to notice."""
    limits = ("run.timeout_seconds=1", "run.stall_seconds=15")
    arguments = ("--config", str(rooms_yaml), f"run.out={tmp_path / 'run'}", *RUN, *limits)
    fault = Fault(launcher.start("data:0:5", *arguments, script=SCRIPT), tmp_path / "run")
    expected = (
        r"^error: no progress for 15 s \(run.stall_seconds\) at step 5, reading data; the stacks"
    )
    assert re.search(expected, fault.message())
    assert re.search(r'^  File ".*faulty_main.py", line \d+ in count$', fault.stderr, re.MULTILINE)
    assert fault.newest() == 4


@pytest.mark.slow
def test_damage_that_one_rank_meets(start, rooms, tmp_path):
    """The other rank does not speak of the connection that it lost."""
    copy = tmp_path / "shards"
    shutil.copytree(rooms, copy)
    shard = sorted(copy.glob("train-*.tar"))[0]
    with tarfile.open(shard) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith(".rgb.png"))
    data = bytearray(shard.read_bytes())
    data[member.offset_data + member.size // 2] ^= 0xFF
    shard.write_bytes(data)
    message = start(None, f"data.shards={copy}", engine="ddp_cpu").message()
    assert re.search(rf"^error: rank [01] of 2 on {HOST}: .*{member.name}: damaged: crc32", message)


@pytest.mark.parametrize("skewed", [SLOW_DDP, SLOW_ZERO2])
def test_clocks_do_not_agree(skewed, launcher, rooms_yaml, trained, tmp_path):
    """One rank's runs twice as fast and is half a day behind: nothing changes, to the bit."""
    out = tmp_path / "skewed"
    arguments = ("--config", str(rooms_yaml), f"run.out={out}", *RUN, "run.timeout_seconds=60")
    end = launcher.start("clock:1:0", *arguments, engine=skewed, script=SCRIPT).finish()
    assert end.code == 0, end.stderr[-4000:]
    one, two = ((run / "metrics.jsonl").read_bytes() for run in (trained(agreeing(skewed)), out))
    assert one == two


@pytest.mark.slow
def test_the_launcher_is_killed(start):
    """Its workers do not go on alone, beside whoever is started in their place."""
    fault = start(None, "run.steps=100000", engine="ddp_cpu")
    workers = fault.wait_for_step(4)
    fault.send(signal.SIGKILL)
    gone, alive = psutil.wait_procs(workers, timeout=SLACK)
    assert not alive and len(gone) == 2
    message = fault.message(code=-9)
    assert re.search(rf"rank [01] of 2 on {HOST}: the launcher \(process \d+\) has ended$", message)
    assert fault.newest() >= 4


@pytest.mark.parametrize(
    ("engine", "options", "cause"),
    [
        ("ddp_cpu", "size=64k", "No space left on device"),
        pytest.param("zero2_cpu", "size=64k", "No space left on device", marks=pytest.mark.slow),
        pytest.param("ddp_cpu", "ro", "Read-only file system", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_cannot_be_written(engine, options, cause, start):
    """Those before it are whole."""
    fault = start(None, "run.steps=100000", engine=engine)
    fault.wait_for_step(4)
    with mounted("-t", "tmpfs", "-o", options, "tmpfs", at=fault.out / "checkpoints"):
        message = fault.message()
    assert re.search(rf"^error: rank [01] of 2 on {HOST}: checkpoint .*/step-\d+ cannot", message)
    assert cause in message
    assert fault.newest() >= 4


@pytest.mark.parametrize("engine", ["ddp_cpu", SLOW_ZERO2])
def test_one_rank_raises(engine, start):
    fault = start("error:1:5", engine=engine)
    expected = "RuntimeError at step 5, training: an error that nobody expects"
    assert fault.message() == f"error: rank 1 of 2 on {socket.gethostname()}: {expected}"
    assert "unexpected error\nTraceback" in fault.stderr
    assert fault.newest() == 4


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp_cpu", "zero2_cpu"])
def test_a_loss_of_one_rank_is_not_a_number(engine, start):
    fault = start("nan:1:5", engine=engine)
    assert re.search(
        rf"the loss became NaN or infinite in step 5: \['depth_zbuffer'\] on rank 1 \({HOST}\) of "
        r"2 ranks; .*the checkpoints in run.out are from before",
        fault.message(),
    )
    assert fault.newest() == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nan", "gradient"])
@pytest.mark.parametrize("engine", ["ddp_cpu", "zero2_cpu", "zero3_cpu"])
def test_bad_steps_of_one_rank_are_left_out_on_both(engine, kind, start):
    """One more than allowed ends the run."""
    options = ("optim.skip_nonfinite=2", "optim.gradient_accumulation_steps=2")
    fault = start(f"{kind}:1:5-7", *options, engine=engine)
    what = "the loss" if kind == "nan" else "a gradient"
    message = fault.message()
    assert re.search(rf"{what} became NaN or infinite in step 7.*skip_nonfinite allows 2", message)
    records = (fault.out / "metrics.jsonl").read_text().splitlines()
    assert [line for line in records if '"skip"' in line] == [
        '{"step": 6, "kind": "skip", "skipped": 1}', '{"step": 7, "kind": "skip", "skipped": 2}',
    ]  # fmt: skip
    assert fault.newest() == 6
    moments = {step: load_checkpoint(fault.out / f"checkpoints/step-{step:09d}") for step in (4, 6)}
    assert moments[6].progress.optimizer_step == moments[4].progress.optimizer_step + 1
