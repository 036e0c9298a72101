"""Under every engine, a network that is rebuilt without the heads that are off trains as before."""

import json

import pytest
from safetensors.torch import load_file

from tests.distributed.cells import PLAIN, Cell, Launch

pytestmark = pytest.mark.distributed

NUM_STEPS, HARD = 16, 12  # steps of a run, and the step after which every task has one head
# All heads stay with the network up to the last decision, or none that is off.
COMPACT = {"whole": "pruning.compact=1", "small": "pruning.compact=0"}
OPTIONS = (
    f"run.steps={NUM_STEPS}", "run.precision=fp32", f"run.checkpoint_every={HARD - 1}",
    "run.keep_last=9", "pruning.threshold=0.3", "pruning.end=0.75", "pruning.every=2",
    "grouping.logits_noise=1.0",
)  # fmt: skip
ENGINES = ("ddp_cpu", "zero1_cpu", "zero2_cpu", "zero3_cpu", "fsdp2_cpu", "zero3_offload_cpu")
LAUNCHES = [
    PLAIN,
    *(pytest.param(Launch(engine), marks=pytest.mark.slow) for engine in ENGINES),
]


def both(launch):
    """Both runs by one engine."""
    return {n: Cell(launch, f"compaction-{n}", (c, *OPTIONS)) for n, c in COMPACT.items()}


def cells(runs):
    return both(runs).values()


@pytest.fixture(scope="module", params=LAUNCHES, ids=str)
def runs(request, trained):
    """The folders of both runs by one engine."""
    return {name: trained(cell) for name, cell in both(request.param).items()}


def records(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def heads(run, step):
    progress = (run / f"checkpoints/step-{step:09d}/progress.json").read_text()
    return len(json.loads(progress)["network"]["heads"])


def test_one_of_them_gets_smaller_on_the_way(runs):
    steps = {name: [r["step"] for r in records(run, "compact")] for name, run in runs.items()}
    assert steps["whole"] == [HARD] and len(steps["small"]) > 2 and max(steps["small"]) == HARD
    assert heads(runs["whole"], HARD - 1) == 18 > heads(runs["small"], HARD - 1) > 6
    alive = [r["heads"] for r in records(runs["small"], "train") if r["step"] == HARD - 1]
    assert alive == [heads(runs["small"], HARD - 1)]
    assert heads(runs["whole"], NUM_STEPS) == heads(runs["small"], NUM_STEPS) == 6


def test_nothing_is_left_of_a_network_that_was_replaced(runs):
    for run in runs.values():
        for path in run.glob("record-*.json"):
            record = json.loads(path.read_text())
            assert record["replaced"] > 0 and record["remains"] == [], path


def test_every_step_is_the_same(runs):
    found, expected = (records(runs[name], "train") for name in ("small", "whole"))
    assert len(found) == len(expected) == NUM_STEPS
    for now, then in zip(found, expected, strict=True):
        for task, value in then["losses"].items():
            assert now["losses"][task] == pytest.approx(value, rel=1e-5), (now["step"], task)
    assert records(runs["small"], "prune") == records(runs["whole"], "prune")


def test_what_is_left_is_the_same(runs):
    for name, limit in (("weights", 1e-6), ("moments", 1e-5)):
        file = f"checkpoints/step-{NUM_STEPS:09d}/{name}.safetensors"
        found, expected = (load_file(runs[run] / file) for run in ("small", "whole"))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            scale = 1.0 if name == "weights" else max(float(value.abs().max()), 1e-8)
            assert float((found[key] - value).abs().max()) / scale < limit, (name, key)
