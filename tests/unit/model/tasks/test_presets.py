from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.tasks.decode import natural_values
from model.tasks.presets import PRESETS, TASKONOMY
from model.tasks.targets import TargetBuilder

SAMPLE = Path(__file__).resolve().parents[4] / ".." / "shared" / "data" / "taskonomy_sample"


def test_sizes():
    sizes = {name: len(specs) for name, specs in PRESETS.items()}
    assert sizes == {"taskonomy5": 5, "taskonomy": 10, "celeba9": 9, "celeba40": 40}
    assert [spec.channels for spec in PRESETS["taskonomy5"]] == [1, 3, 18, 1, 1]


def test_the_published_losses_of_taskonomy5_alone():
    assert {spec.name: spec.loss for spec in PRESETS["taskonomy5"]} == {
        "depth_zbuffer": "l1_shift",
        "normal": "l1_shift",
        "segment_semantic": "cross_entropy",
        "keypoints2d": "l1",
        "edge_texture": "l1",
    }
    for spec in PRESETS["taskonomy5"]:
        assert TASKONOMY[spec.name] == replace(spec, loss="")
    assert "l1_shift" not in {spec.loss for spec in TASKONOMY.values()}


def test_responses_alone_have_positive_pixels():
    names = {spec.name for spec in TASKONOMY.values() if spec.positive_above is not None}
    assert names == {"edge_texture", "edge_occlusion", "keypoints2d", "keypoints3d"}
    assert TASKONOMY["edge_texture"].positive_above == pytest.approx(1788.5 / 65535)


def test_celeba9_is_part_of_celeba40_and_two_way():
    assert set(PRESETS["celeba9"]) < set(PRESETS["celeba40"])
    assert {spec.signature for spec in PRESETS["celeba40"]} == {("binary", 2, "cross_entropy")}
    assert len({spec.name for spec in PRESETS["celeba40"]}) == 40


@pytest.mark.parametrize(
    ("name", "raw", "scaled"),
    [
        ("depth_zbuffer", 2500, 1.0),
        ("normal", 255, 1.0),
        ("normal", 0, -1.0),
        ("keypoints2d", 250, 2.0),
        ("edge_texture", 718 + 1070, 1.0),
        ("reshading", 255, (1 - 0.4962) / 0.2846),
        ("principal_curvature", 127, (127 / 255 - 0.5175) / 0.1373),
    ],
)
def test_published_scales(name, raw, scaled):
    spec = TASKONOMY[name]
    labels = torch.full((1, spec.channels, 2, 2), raw)
    targets = TargetBuilder([spec])([labels], torch.ones(1, 1, dtype=torch.bool))
    assert float(targets.target[0, 0, 0, 0, 0]) == pytest.approx(scaled, rel=1e-5, abs=1e-6)


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
