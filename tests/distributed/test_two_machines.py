"""Two launchers as two machines of one process each train as one machine with two processes."""

import json

import pytest
from safetensors.torch import load_file

from tests.distributed.cells import Cell, Launch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

NUM_STEPS = 8
FINAL = f"checkpoints/step-{NUM_STEPS:09d}"


def one_machine(engine):
    return Cell(Launch(engine), "one-machine", (f"run.steps={NUM_STEPS}",))


def cells(engine):
    return [one_machine(engine)]


def start_machine(launcher, rooms_yaml, out, engine, rank, port):
    flags = (
        "--num_machines", "2", "--machine_rank", str(rank), "--num_processes", "2",
        "--main_process_ip", "127.0.0.1", "--main_process_port", str(port),
    )  # fmt: skip
    if engine.startswith("zero"):
        flags += ("--deepspeed_multinode_launcher", "standard")
    return launcher.train(
        rooms_yaml, f"run.out={out}", f"run.steps={NUM_STEPS}", engine=engine, flags=flags
    )


def train_losses(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [r["losses"] for line in lines if (r := json.loads(line))["kind"] == "train"]


@pytest.mark.parametrize("engine", ["ddp_cpu", "zero2_cpu"])
def test_two_machines_equal_one(engine, trained, launcher, rooms_yaml, tmp_path, free_port):
    one, two = trained(one_machine(engine)), tmp_path / "two"
    port = free_port()
    machines = [start_machine(launcher, rooms_yaml, two, engine, rank, port) for rank in (0, 1)]
    ends = [machine.finish() for machine in machines]
    for end in ends:
        assert end.code == 0, end.stderr[-4000:]
    assert train_losses(two) == train_losses(one) and len(train_losses(one)) == NUM_STEPS
    for name in ("weights", "moments", "grouping"):
        found, expected = (load_file(run / FINAL / f"{name}.safetensors") for run in (two, one))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].equal(value), (name, key)
