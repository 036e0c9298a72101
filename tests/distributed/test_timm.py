"""Models of timm, split into trunk and branches, learn the same under every engine."""

import importlib.util
import json

import pytest

from tests.distributed.cells import Cell, Launch

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm: make setup"),
]
ENGINES = ("zero1_cpu", "zero2_cpu", "zero3_cpu")
MODELS = ("test_convnext", "test_vit")


def cell(engine, model, *, checkpointing):
    """Six steps of two processes."""
    overrides = (
        "run.steps=6", "model.encoder.name=timm", f"model.encoder.options={{model: {model}}}",
        "model.trunk_depth=2", f"model.activation_checkpointing={str(checkpointing).lower()}",
    )  # fmt: skip
    return Cell(Launch(engine), f"{model}-{checkpointing}", overrides)


def cells(engine, model):
    return [
        cell("ddp_cpu", model, checkpointing=False),
        cell(engine, model, checkpointing=True),
    ]


def records(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if record["kind"] == "train"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("engine", ENGINES)
def test_losses_equal_those_of_plain_ddp(trained, engine, model):
    """About half of the steps are clipped, so the norm of the gradient shows in them."""
    expected, found = (records(trained(one)) for one in cells(engine, model))
    assert len(found) == len(expected) == 6
    for own, other in zip(found, expected, strict=True):
        assert own["losses"] == pytest.approx(other["losses"], rel=1e-4), own["step"]
    first, last = expected[0]["losses"], expected[-1]["losses"]
    assert first != pytest.approx(last, rel=1e-4), "something is learned"
