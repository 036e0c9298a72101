"""The published encoder's step, and its checkpointed branches, are the same under every engine."""

import json

import pytest
import yaml

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


@pytest.fixture(scope="module")
def losses(session_launcher, rooms_yaml, tmp_path_factory):
    """Losses of six steps with batch statistics, two processes."""
    root = tmp_path_factory.mktemp("options")
    tree = yaml.safe_load(rooms_yaml.read_text())
    tree["model"]["encoder"] = {"name": "residual64", "options": {"channels": 8}}
    tree["run"]["steps"] = 6
    config = root / "residual.yaml"
    config.write_text(yaml.safe_dump(tree))

    def get(engine, checkpoint):
        out = root / f"{engine}-{checkpoint}"
        overrides = (f"run.out={out}", f"model.activation_checkpointing={str(checkpoint).lower()}")
        end = session_launcher.train(config, *overrides, engine=engine).finish()
        assert end.code == 0, end.stderr[-4000:]
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        return [r["losses"] for r in lines if r["kind"] == "train"]

    return get


@pytest.fixture(scope="module")
def expected(losses):
    return losses("ddp_cpu", False)


@pytest.mark.parametrize(("engine", "checkpoint"), CASES)
def test_losses_equal_those_of_plain_ddp(losses, expected, engine, checkpoint):
    found = losses(engine, checkpoint)
    assert len(found) == len(expected) == 6
    for step, (own, other) in enumerate(zip(found, expected, strict=True)):
        assert own == pytest.approx(other, rel=1e-4), step
    assert expected[0] != pytest.approx(expected[-1], rel=1e-4), "something is learned"
