"""Two processes that compute one head of every task train as one process does, on all engines."""

import json

import pytest
from safetensors.torch import load_file

from tests.distributed.cells import PLAIN, Cell, Launch
from tests.distributed.closeness import relative_error

pytestmark = pytest.mark.distributed

# Micro-batches; with six tasks on five branches most steps leave a branch without a task.
CASES = {None: 1, "ddp_cpu": 2, "zero1_cpu": 1, "zero2_cpu": 2, "zero3_cpu": 1}
STEPS = 20


def cell(engine):
    overrides = (
        f"run.steps={STEPS}", "grouping.sampled_heads=1", "model.branches=5",
        "pruning.threshold=0.1", "pruning.end=0.9",
        f"optim.gradient_accumulation_steps={CASES[engine]}",
    )  # fmt: skip
    return Cell(Launch(engine) if engine else PLAIN, "sampled-heads", overrides)


def cells(engine):
    return [cell(None), cell(engine)]


def records(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def state(run, name):
    return load_file(run / "checkpoints" / f"step-{STEPS:09d}" / f"{name}.safetensors")


@pytest.mark.parametrize(
    "engine",
    [
        "zero3_cpu",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ddp_cpu", "zero1_cpu", "zero2_cpu")
        ),
    ],
)
def test_losses_and_state_equal_those_of_one_process(engine, trained):
    run, plain = trained(cell(engine)), trained(cell(None))
    actual, expected = records(run, "train"), records(plain, "train")
    assert len(actual) == len(expected) == STEPS
    for now, then in zip(actual, expected, strict=True):
        assert now["losses"] == pytest.approx(then["losses"], rel=1e-4), now["step"]
        assert now["heads"] == then["heads"]
    assert expected[10]["heads"] > 6 == expected[-1]["heads"]
    for kind in ("prune", "compact"):
        assert records(run, kind) == records(plain, kind)
    for name in ("weights", "moments", "grouping"):
        one, two = state(run, name), state(plain, name)
        assert one.keys() == two.keys()
        for key in two:
            error = relative_error(one[key], two[key])  # NaN for a loss that was never seen
            assert error < 1e-2, (engine, name, key, error)
