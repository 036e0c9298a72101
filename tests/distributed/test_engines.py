"""Two processes under every engine train as one process does on the same global batch."""

import json
import math

import pytest
from safetensors.torch import load_file

from tests.distributed.cells import thirty_steps
from tests.distributed.closeness import relative_error

pytestmark = pytest.mark.distributed

ENGINES = (
    "ddp_cpu", "zero2_cpu", "zero3_cpu", "fsdp2_cpu",
    pytest.param("zero1_cpu", marks=pytest.mark.slow),
)  # fmt: skip


def cells(engine=None):
    return [thirty_steps(None), *([thirty_steps(engine)] if engine else [])]


def records(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def closeness(found, expected):
    return max(abs(f - e) / max(abs(e), 1e-12) for f, e in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def one_process(trained):
    return trained(thirty_steps(None))


@pytest.fixture(scope="module", params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def run(engine, trained):
    return trained(thirty_steps(engine))


def test_one_process_prunes_and_drops_a_branch_before_the_end(one_process):
    pruned = [record["step"] for record in records(one_process, "prune")]
    assert len(pruned) > 2 and min(pruned) < 12 and max(pruned) == 24
    compacted = records(one_process, "compact")
    branches = [len(record["branches"]) for record in compacted]
    assert 3 in branches and compacted[branches.index(3)]["step"] < compacted[-1]["step"] == 24
    assert records(one_process, "train")[-1]["heads"] == 6


def test_losses_equal_those_of_one_process(engine, one_process, run):
    found, expected = records(run, "train"), records(one_process, "train")
    assert [r["step"] for r in found] == [r["step"] for r in expected] == list(range(1, 31))
    for now, then in zip(found, expected, strict=True):
        error = closeness(now["losses"].values(), then["losses"].values())
        assert error < 1e-4, (engine, now["step"], error)
        assert now["heads"] == then["heads"]
    for kind in ("prune", "compact"):
        assert records(run, kind) == records(one_process, kind)


def test_weights_moments_and_logits_equal_those_of_one_process(engine, one_process, run):
    last = "checkpoints/step-000000030"
    for name in ("weights", "moments", "grouping"):
        found = load_file(run / last / f"{name}.safetensors")
        expected = load_file(one_process / last / f"{name}.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            error = relative_error(found[key], value)
            # Rounding may push a ReLU over its kink, so one element can be off by more.
            assert error < 1e-2, (engine, name, key, error)


def test_evaluation_equals_that_of_one_process(one_process, run):
    (found,), (expected,) = (records(r, "eval") for r in (run, one_process))
    assert found["metrics"].keys() == expected["metrics"].keys()
    for task, metrics in expected["metrics"].items():
        for name, value in metrics.items():
            assert math.isclose(found["metrics"][task][name], value, rel_tol=1e-3), (task, name)
