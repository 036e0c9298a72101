"""fp16 under ZeRO recovers from a loss scale that is too large, and clips the true gradient."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distributed.fp16_steps import TOO_LARGE

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).with_name("fp16_steps.py")
ENGINES = (
    "zero2_cpu", "zero3_cpu",
    *(pytest.param(e, marks=pytest.mark.slow) for e in ("zero1_cpu", "zero3_offload_cpu")),
)  # fmt: skip


@pytest.fixture(scope="module", params=ENGINES)
def out(request, session_launcher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp16")
    end = session_launcher.start(str(folder), engine=request.param, script=SCRIPT).finish()
    assert end.code == 0, end.stderr[-4000:]
    return folder


def records(out, name):
    return json.loads((out / f"{name}.json").read_text())


def test_the_scale_is_halved_after_every_step_that_is_skipped(out):
    steps = records(out, "too_large")
    assert steps[0]["scale"] == TOO_LARGE and [step["skipped"] for step in steps[:3]] == [True] * 3
    for step, following in pairwise(steps):
        assert following["scale"] == step["scale"] / (2 if step["skipped"] else 1)


def test_the_weights_are_trained_once_the_gradient_is_finite(out):
    steps = records(out, "too_large")
    assert sum(not step["skipped"] for step in steps) > 3
    assert steps[0]["losses"] == records(out, "fp16")[0]["losses"]
    assert sum(steps[-1]["losses"]) < sum(steps[0]["losses"])


def test_moments_are_those_of_fp32(out):
    found, expected = (load_file(out / f"{name}.safetensors") for name in ("fp16", "fp32"))
    assert not any(step["skipped"] for step in records(out, "fp16"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max())
        assert float((found[name] - value).abs().max()) < 0.03 * scale, name
