"""The published encoder's step, and its checkpointed branches, are the same under every engine."""

import json

import pytest

from tests.distributed.cells import Cell, Launch

pytestmark = pytest.mark.distributed

CASES = [
    ("zero3_cpu", True),
    *(
        pytest.param(engine, checkpoint, marks=pytest.mark.slow)
        for engine, checkpoint in (
            ("ddp_cpu", True),
            ("zero2_cpu", False),
            ("zero3_cpu", False),
            ("fsdp2_cpu", True),
        )
    ),
]


def cell(engine, checkpoint):
    """Six steps with batch statistics, two processes."""
    overrides = (
        "run.steps=6", "model.encoder.name=residual64", "model.encoder.options={channels: 8}",
        f"model.activation_checkpointing={str(checkpoint).lower()}",
    )  # fmt: skip
    return Cell(Launch(engine), f"step-options-{checkpoint}", overrides)


def cells(engine, checkpoint):
    return [cell("ddp_cpu", False), cell(engine, checkpoint)]


def losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [r["losses"] for r in lines if r["kind"] == "train"]


@pytest.mark.parametrize(("engine", "checkpoint"), CASES)
def test_losses_equal_those_of_plain_ddp(trained, engine, checkpoint):
    expected = losses(trained(cell("ddp_cpu", False)))
    found = losses(trained(cell(engine, checkpoint)))
    assert len(found) == len(expected) == 6
    for step, (own, other) in enumerate(zip(found, expected, strict=True)):
        assert own == pytest.approx(other, rel=1e-4), step
    assert expected[0] != pytest.approx(expected[-1], rel=1e-4), "something is learned"
