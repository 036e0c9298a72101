"""Compiled trunk and branches train as others do, with one graph for a run that is compacted."""

import json
from dataclasses import replace

import pytest

from tests.distributed.cells import Launch
from tests.distributed.test_compaction import NUM_STEPS, both

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ENGINES = ("ddp_cpu", "zero1_cpu", "zero2_cpu", "fsdp2_cpu")


def pair(engine):
    """A run that is compacted several times, and the same with compiled parts."""
    plain = both(Launch(engine))["small"]
    overrides = (*plain.overrides, "model.compile=true")
    return plain, replace(plain, name="compiled", overrides=overrides)


def cells(engine):
    return pair(engine)


def losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["losses"] for record in lines if record["kind"] == "train"]


@pytest.mark.parametrize("engine", ENGINES)
def test_one_graph_serves_three_branches_and_the_smaller_networks(engine, trained):
    plain, compiled = (trained(cell) for cell in pair(engine))
    found, expected = losses(compiled), losses(plain)
    assert len(found) == len(expected) == NUM_STEPS
    for step, (own, other) in enumerate(zip(found, expected, strict=True)):
        assert own == pytest.approx(other, rel=1e-4), step
    for path in compiled.glob("record-*.json"):
        record = json.loads(path.read_text())
        assert record["replaced"] > 2 and record["remains"] == [], path
        assert record["graphs"] == 1, path
