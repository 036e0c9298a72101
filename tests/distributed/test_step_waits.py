"""A step of several processes does not wait for the device either."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("engine", ["ddp_cpu", pytest.param("fsdp2_cpu", marks=pytest.mark.slow)])
def test_steps_of_two_processes_do_not_wait(engine, launcher, tmp_path):
    script = Path(__file__).with_name("step_waits.py")
    end = launcher.start(str(tmp_path), engine=engine, script=script).finish()
    assert end.code == 0, end.stderr[-4000:]
    assert end.stdout.split() == ["steps:"]
