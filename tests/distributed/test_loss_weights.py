"""Two processes weight the losses as one process does, on all engines, while heads are pruned."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distributed.closeness import relative_error
from tests.distributed.weighted_runs import METHODS, STEPS, train_all

pytestmark = pytest.mark.distributed

ENGINES = {"zero3_cpu": 2, "ddp_cpu": 1, "zero1_cpu": 1, "zero2_cpu": 2, "fsdp2_cpu": 1}
LAST = f"checkpoints/step-{STEPS + 3:09d}"


def records(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


@pytest.mark.parametrize(
    "engine",
    ["zero3_cpu", *(pytest.param(e, marks=pytest.mark.slow) for e in list(ENGINES)[1:])],
)
def test_weights_and_state_equal_those_of_one_process(engine, launcher, like_a_process, tmp_path):
    script, accumulation = Path(__file__).with_name("weighted_runs.py"), ENGINES[engine]
    arguments = (str(tmp_path / "two"), str(accumulation))
    end = launcher.start(*arguments, engine=engine, script=script).finish()
    assert end.code == 0, end.stderr[-4000:]
    with like_a_process():
        train_all(tmp_path / "one", 2 * accumulation)
    for method in METHODS:
        run, plain = tmp_path / "two" / method, tmp_path / "one" / method
        actual, expected = records(run, "train"), records(plain, "train")
        assert len(actual) == len(expected) == STEPS + 3
        for now, then in zip(actual, expected, strict=True):
            for values in ("losses", "loss_weights"):
                assert now[values] == pytest.approx(then[values], rel=1e-3), (method, now["step"])
        if method != "given":
            assert expected[-4]["loss_weights"] != pytest.approx(expected[0]["loss_weights"])
        for kind in ("prune", "compact"):
            assert records(run, kind) == records(plain, kind) != []
        for name in ("weights", "grouping"):
            one, two = (load_file(r / LAST / f"{name}.safetensors") for r in (run, plain))
            assert one.keys() == two.keys()
            for key in two:
                error = relative_error(one[key], two[key])
                assert error < 1e-2, (engine, method, name, key, error)
