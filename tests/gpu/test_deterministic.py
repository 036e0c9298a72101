"""With `run.deterministic=true` two runs on a GPU, and a resume, write the same bytes."""

import json
import shutil

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from trainer.engines.accelerator import make_accelerator
from trainer.engines.device import set_arithmetic
from trainer.loop import train
from trainer.session import start_session

pytestmark = pytest.mark.gpu(emulated=False)

DEVICE = "cuda"
LAST = [f"step-000000012/{name}.safetensors" for name in ("weights", "moments", "grouping")]
# Batch normalisation, max-pooling, bilinear upsampling, cross-entropy per pixel, a gathered shift;
# heads are pruned and the network is compacted on the way.
OPTIONS = (
    "run.steps=12", "run.checkpoint_every=1", "run.keep_last=100", "pruning.begin=0.1",
    "pruning.end=0.7", "model.branches=4", "tasks.define.normal.loss=l1_shift",
    "model.encoder.options={model_type: resnet, embedding_size: 8, hidden_sizes: [8, 16], "
    "depths: [1, 1], layer_type: basic}",
)  # fmt: skip


@pytest.fixture
def run(rooms_config, monkeypatch):
    """Trains on the GPU in this process; the run's folder."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # so that it is restored

    def forget():
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()

    def of(out, *options):
        forget()
        config = rooms_config(*OPTIONS, f"run.device={DEVICE}", f"run.out={out}", *options)
        with start_session(config, make_accelerator(config)) as session:
            assert session.accelerator.device.type == DEVICE
            train(session)
            return session.folder

    yield of
    set_arithmetic(rooms_config())
    forget()


def assert_same_bytes(found, expected):
    assert found.metrics.read_bytes() == expected.metrics.read_bytes()
    for name in LAST:
        files = [folder.checkpoints / name for folder in (found, expected)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_runs_and_a_resume_write_the_same_bytes(run, tmp_path, precision):
    options = ("run.deterministic=true", f"run.precision={precision}")
    first = run(tmp_path / "first", *options)
    assert_same_bytes(run(tmp_path / "second", *options), first)

    begun = tmp_path / "begun"
    shutil.copytree(first.checkpoints / "step-000000005", begun / "checkpoints/step-000000005")
    for file in (first.config, first.metrics):
        shutil.copy(file, begun)
    assert_same_bytes(run(begun, *options, "run.resume=auto"), first)


def test_weights_that_are_stored_channels_last_are_trained_alike(run, tmp_path):
    losses = []
    for layout in ("auto", "never"):
        folder = run(tmp_path / layout, f"model.channels_last={layout}", "run.steps=4")
        records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        losses.append([r["losses"] for r in records if r["kind"] == "train"])
    assert len(losses[0]) == 4
    for found, expected in zip(*losses, strict=True):
        assert found == pytest.approx(expected, rel=5e-3)
