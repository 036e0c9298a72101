import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.bundle import BundleError, load_pruned, save_bundle
from model.encoders import build_encoder
from model.network import MultiTaskNetwork
from model.tasks.decode import natural
from model.tasks.spec import TaskSpec

OLD = Path(__file__).resolve().parents[2] / "fixtures" / "version1"
SIZE = (16, 16)
TASKS = [
    TaskSpec("depth", "dense_regression", unit="m", unit_scale=0.5),
    TaskSpec("cube", "binary"),
    TaskSpec("sphere", "binary"),
]
IMAGES = torch.arange(2 * 3 * 256).remainder(251).view(2, 3, *SIZE).to(torch.uint8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    encoder = build_encoder("residual64", 2, image_size=SIZE, options={"channels": 8})
    heads = [(0, 1), (1, 0), (2, 1)]
    return MultiTaskNetwork(TASKS, encoder, SIZE, heads=heads, dense_widths=(8,))


@pytest.fixture
def path(network, tmp_path):
    network(IMAGES, network.select(network.heads))  # moves the running statistics
    save_bundle(tmp_path / "model.safetensors", network, {"step": 7})
    return tmp_path / "model.safetensors"


def rewrite(path, change):
    """Save the file again with a changed description and tensors."""
    with safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()["dmtg"])
    tensors = load_file(path)
    change(description, tensors)
    save_file(tensors, path, metadata={"dmtg": json.dumps(description)})


def test_round_trip(network, path):
    model = load_pruned(path)
    assert not model.training and model.metadata == {"step": 7}
    assert model.groups == [["cube"], ["depth", "sphere"]]
    assert model.tasks == tuple(TASKS) and model.image_size == SIZE
    network.eval()
    with torch.no_grad():
        expected = network(IMAGES, network.select(network.heads))["predictions"]
    found = model(IMAGES)
    assert list(found) == ["depth", "cube", "sphere"]
    for spec in TASKS:
        assert torch.equal(found[spec.name], natural(spec, expected[spec.name]))
        assert not found[spec.name].requires_grad


def test_a_file_of_version_1_computes_what_it_computed_then():
    model = load_pruned(OLD / "model.safetensors")
    expected = load_file(OLD / "expected.safetensors")
    found = model(expected.pop("images"))
    assert {f"output.{name}" for name in found} == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[f"output.{name}"]), name


def test_weights_are_fp32_and_nothing_else_is_left_behind(network, tmp_path):
    save_bundle(tmp_path / "m.safetensors", network.bfloat16(), {})
    floats = [t for t in load_file(tmp_path / "m.safetensors").values() if t.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.float32}
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_failed_save_keeps_the_old_file(network, path, monkeypatch):
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("dmtg.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_bundle(path, network, {})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_only_pruned_networks_are_saved(tmp_path):
    encoder = build_encoder("residual64", 2, image_size=SIZE, options={"channels": 8})
    full = MultiTaskNetwork(TASKS[1:], encoder, SIZE)
    with pytest.raises(ValueError, match="4 heads for 2 tasks and 2 branches, must have one per"):
        save_bundle(tmp_path / "m", full, {})
    one_sided = MultiTaskNetwork(TASKS[1:], encoder, SIZE, heads=[(0, 1), (1, 1)])
    with pytest.raises(ValueError, match="no branch without"):
        save_bundle(tmp_path / "m", one_sided, {})


def test_files_that_are_no_model(tmp_path):
    with pytest.raises(BundleError, match="absent: no such file"):
        load_pruned(tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(BundleError, match="text: not a readable safetensors file"):
        load_pruned(tmp_path / "text")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(BundleError, match="other: not an exported model"):
        load_pruned(tmp_path / "other")
    save_file({"a": torch.zeros(1)}, tmp_path / "other", metadata={"dmtg": "{"})
    with pytest.raises(BundleError, match="other: its description is not JSON"):
        load_pruned(tmp_path / "other")


def test_a_truncated_file(path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match="not a readable safetensors file"):
        load_pruned(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d, _: d.update(version=9),
            "format version is 9, this program reads versions 1 to 2",
        ),
        (lambda d, _: d.pop("network"), "its description cannot be built"),
        (lambda d, _: d["network"]["tasks"][0].update(kind="odd"), "kind is 'odd'"),
        (
            lambda _, t: t.pop("stacked_heads.binary_1_bce.bias"),
            "'stacked_heads.binary_1_bce.bias' is missing",
        ),
        (
            lambda _, t: t.update({"stacked_heads.binary_1_bce.bias": torch.zeros(1)}),
            r"has shape \(1,\), must be \(2, 1\)",
        ),
        (lambda _, t: t.update(extra=torch.zeros(1)), "holds an unknown tensor 'extra'"),
    ],
)
def test_damaged_contents(path, change, message):
    rewrite(path, change)
    with pytest.raises(BundleError, match=message) as fault:
        load_pruned(path)
    assert str(path) in str(fault.value)


@pytest.mark.parametrize("place", ["build_skeleton", "check_maps"])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    ],
)
def test_no_memory_is_no_fault_of_the_file(error, place, path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(f"model.bundle.{place}", fail)
    with pytest.raises(type(error)) as caught:
        load_pruned(path)
    assert caught.value is error


def test_a_fault_that_is_not_of_the_description_is_not_told_as_one(path, monkeypatch):
    def fail(*_):
        raise TypeError("a fault of ours")

    monkeypatch.setattr("model.bundle.check_maps", fail)
    with pytest.raises(TypeError, match="a fault of ours"):
        load_pruned(path)
