"""Batch statistics of two processes are those of the whole batch."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.gpu.devices import assert_same_curve, distance, launch
from tests.processes import unused_port

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).with_name("shared_device_main.py")
TEN = ("run.steps=10", "run.checkpoint_every=10", "pruning.end=0.8")
RESNET = (
    "model.encoder.options={model_type: resnet, embedding_size: 8, hidden_sizes: [8, 16], "
    "depths: [1, 1], layer_type: basic}"
)
# The statistics of the batch are those of all processes on GPUs only.
BATCH = pytest.param((RESNET,), id="batch", marks=pytest.mark.gpu(emulated=False))
NORMS = (BATCH, pytest.param((), id="layer"))


def assert_same_run(run, reference):
    assert_same_curve(run, reference)
    last = "checkpoints/step-000000010/weights.safetensors"
    found, expected = load_file(run / last), load_file(reference / last)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert distance(found[name], value) < 1e-2, name


@pytest.fixture(params=NORMS)
def options(request):
    return (*TEN, *request.param)


@pytest.fixture
def reference(options, rooms_config, train, tmp_path):
    """One process on the CPU."""
    return train(rooms_config(*options, f"run.out={tmp_path / 'one'}"), on_cpu=True)


def test_two_processes_on_one_device(options, reference, launcher, rooms_yaml, tmp_path):
    out, port = tmp_path / "run", str(unused_port())
    arguments = (port, "--config", str(rooms_yaml), f"run.out={out}", *options)
    processes = [launcher.start(str(rank), *arguments, script=SCRIPT) for rank in (0, 1)]
    for end in [process.finish() for process in processes]:
        assert end.code == 0, end.stderr[-4000:]
    assert_same_run(out, reference)


@pytest.mark.gpu(devices=2)
def test_two_processes_on_two_devices(options, reference, launcher, rooms_yaml, tmp_path):
    out, flags = tmp_path / "run", ("--num_processes", "2")
    process = launcher.train(
        rooms_yaml, f"run.out={out}", *options, engine=launch("ddp").engine, flags=flags
    )
    end = process.finish()
    assert end.code == 0, end.stderr[-4000:]
    assert_same_run(out, reference)
