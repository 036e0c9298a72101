"""The presets against the published implementation's numbers and released labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.tasks.decode import natural_values
from model.tasks.presets import PRESETS, TASKONOMY
from model.tasks.targets import TargetBuilder

ROOT = Path(__file__).resolve().parents[4]
REFERENCE = ROOT / "tests" / "fixtures" / "reference"
SAMPLE = ROOT / ".." / "shared" / "data" / "taskonomy_sample"


@pytest.fixture(scope="module")
def published():
    """Loss of the published recipe to the shape of its prediction."""
    with np.load(REFERENCE / "losses.npz") as arrays:
        return {k.removesuffix("/pred"): arrays[k].shape for k in arrays if k.endswith("/pred")}


def test_taskonomy5_has_the_published_losses_and_channels(published):
    """Depth and normals have a loss over shifts, which no other preset has."""
    for spec in PRESETS["taskonomy5"]:
        quantity = spec.name.removesuffix("_zbuffer")
        shifted = f"{quantity}_rotate" in published
        name = f"{quantity}_rotate" if shifted else spec.name
        assert spec.outputs == published[name][1]
        expected = "cross_entropy" if spec.name == "segment_semantic" else "l1"
        assert spec.loss == ("l1_shift" if shifted else expected)
        assert TASKONOMY[spec.name] == replace(spec, loss="")
    assert "l1_shift" not in {spec.loss for spec in TASKONOMY.values()}


def test_celeba_heads_are_two_way_as_in_the_published_step():
    with np.load(REFERENCE / "celeba_step_k2_n3.npz") as arrays:
        ((_, outputs),) = {arrays[name].shape for name in arrays if name.startswith("logits/")}
    for preset in ("celeba9", "celeba40"):
        assert {spec.signature for spec in PRESETS[preset]} == {("binary", 2, "cross_entropy")}
        assert {spec.outputs for spec in PRESETS[preset]} == {outputs}


def test_celeba9_is_part_of_the_40_attributes():
    assert set(PRESETS["celeba9"]) < set(PRESETS["celeba40"])
    assert len({spec.name for spec in PRESETS["celeba40"]}) == 40


@pytest.mark.parametrize(
    ("name", "raw", "scaled"),
    [
        ("depth_zbuffer", 2500, 1.0),
        ("normal", 255, 1.0),
        ("normal", 0, -1.0),
        ("keypoints2d", 250, 2.0),
        ("edge_texture", 718 + 1070, 1.0),
        ("edge_occlusion", 1000, (1000 - 56.0248) / 239.1265),
        ("reshading", 255, (1 - 0.4962) / 0.2846),
        ("principal_curvature", 127, (127 / 255 - 0.5175) / 0.1373),
    ],
)
def test_published_scales(name, raw, scaled):
    spec = TASKONOMY[name]
    labels = torch.full((1, spec.channels, 2, 2), raw)
    targets = TargetBuilder([spec])([labels], torch.ones(1, 1, dtype=torch.bool))
    assert float(targets.target[0, 0, 0, 0, 0]) == pytest.approx(scaled, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["depth_zbuffer", "depth_euclidean"])
def test_a_depth_without_a_reading_is_invalid(name):
    """The published recipe takes 2^13 and more, released files 65535, for no reading."""
    labels = torch.tensor([0, 2**13 - 1, 2**13, 65535]).reshape(1, 1, 2, 2)
    targets = TargetBuilder([TASKONOMY[name]])([labels], torch.ones(1, 1, dtype=torch.bool))
    assert targets.mask.flatten().tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [("depth_euclidean", 1024, 2.0), ("normal", 255, 1.0), ("principal_curvature", 127, 0.0)],
)
def test_natural_units(name, raw, value):
    spec = TASKONOMY[name]
    labels = torch.full((1, spec.channels, 2, 2), raw)
    targets = TargetBuilder([spec])([labels], torch.ones(1, 1, dtype=torch.bool))
    assert float(natural_values(spec, targets.target[0])[0, 0, 0, 0]) == pytest.approx(
        value, abs=1e-5
    )


@pytest.mark.parametrize("name", sorted(TASKONOMY))
def test_edges_and_keypoints_alone_have_positive_pixels(name):
    """A stored value is positive when it is scaled to more than one."""
    spec = TASKONOMY[name]
    if not name.startswith(("edge_", "keypoints")):
        assert spec.positive_above is None
        return
    stored = torch.arange(65536, dtype=torch.int32).reshape(1, 1, 256, 256)
    targets = TargetBuilder([spec])([stored], torch.ones(1, 1, dtype=torch.bool))
    positive = natural_values(spec, targets.target[0]) > spec.positive_above
    assert torch.equal(positive, targets.target[0] > 1.0 + 1e-6)
    assert positive.any() and not positive.all()


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no released views at {SAMPLE}")
@pytest.mark.parametrize("name", sorted(set(TASKONOMY) - {"segment_semantic"}))
def test_released_labels_are_scaled_to_a_trainable_range(name):
    spec = TASKONOMY[name]
    paths = sorted((SAMPLE / name).glob("taskonomy_a/*.png"))
    assert paths
    for path in paths:
        raw = torch.from_numpy(np.atleast_3d(np.array(Image.open(path)))).movedim(2, 0)
        targets = TargetBuilder([spec])(
            [raw[None, : spec.channels]], torch.ones(1, 1, dtype=torch.bool)
        )
        assert targets.mask.any()
        assert 1e-3 < float(targets.target.std()) < 20
        assert float(targets.target.abs().mean()) < 10
