"""Drawn icons against areas and symmetries that are known, and the shards that are written."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Manifest, check_shards
from data_pipelines.synthetic.icons.drawing import draw
from data_pipelines.synthetic.icons.icon_set import Icon, load_icons
from data_pipelines.synthetic.icons.write import write_icons


@pytest.fixture(scope="module")
def icons() -> dict[str, Icon]:
    return {icon.name: icon for icon in load_icons()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icons")
    write_icons(folder, size=32, limit=40, samples_per_shard=25, progress=False)
    return folder


def read(root: Path, split: str) -> dict[str, dict[str, bytes]]:
    samples: dict[str, dict[str, bytes]] = {}
    for shard in sorted(root.glob(f"{split}-*.tar")):
        with tarfile.open(shard) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                key, member = info.name.split(".", 1)
                samples.setdefault(key, {})[member] = file.read()
    return samples


def ink(icon: Icon, size: int) -> float:
    return 1 - float(draw(icon.outline, size).mean()) / 255


@pytest.mark.parametrize("size", [24, 32, 48, 129])
def test_areas_are_those_of_the_shapes(icons: dict[str, Icon], size: int) -> None:
    square_with_round_corners = 18**2 - (4 - math.pi) * 2**2
    for name, area in (
        ("circle", math.pi * 10**2),
        ("square", 18**2),
        ("checkbox-blank", square_with_round_corners),
        ("minus", 14 * 2),
    ):
        assert ink(icons[name], size) == pytest.approx(area / 24**2, abs=0.005), name


@pytest.mark.parametrize("scale", [1, 2])
def test_a_bar_is_drawn_on_exactly_its_pixels(icons: dict[str, Icon], scale: int) -> None:
    expected = np.full((24 * scale, 24 * scale), 255)
    expected[11 * scale : 13 * scale, 5 * scale : 19 * scale] = 0
    picture = draw(icons["minus"].outline, 24 * scale)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, expected)


def test_an_arrow_points_to_its_side(icons: dict[str, Icon]) -> None:
    """The head has more ink than the shaft."""
    left, up = (255.0 - draw(icons[f"arrow-{side}"].outline, 48) for side in ("left", "up"))
    assert left[:, :24].sum() > 1.3 * left[:, 24:].sum()
    assert up[:24].sum() > 1.3 * up[24:].sum()


def test_samples_are_named_and_drawn(root: Path, icons: dict[str, Icon]) -> None:
    for split in ("train", "val", "test"):
        samples = read(root, split)
        assert len(samples) == 40
        for key, members in samples.items():
            assert icons[key].split == split
            picture = Image.open(io.BytesIO(members["image.png"]))
            assert (picture.mode, picture.size) == ("L", (32, 32))
            np.testing.assert_array_equal(np.asarray(picture), draw(icons[key].outline, 32))
            stored = json.loads(members["labels.json"])
            assert stored["outline"] == ("outline" in key.split("-"))


def test_variants_do_not_follow_each_other(root: Path) -> None:
    """In the order of the names about half of all neighbours have the same first word."""
    firsts = [key.partition("-")[0] for key in read(root, "train")]
    assert sum(a == b for a, b in itertools.pairwise(firsts)) < 5


def test_the_manifest(root: Path) -> None:
    manifest = Manifest.load(root)
    assert (manifest.dataset, manifest.image, len(manifest.fields)) == ("icons", "image", 104)
    for name in ("train", "val", "test"):
        split = manifest.split(name)
        check_shards(root, split)
        assert [shard.samples for shard in split.shards] == [25, 15]
        counted = [json.loads(m["labels.json"]) for m in read(root, name).values()]
        for task, (negatives, positives) in split.class_counts.items():
            values = [record[task] for record in counted if task in record]
            assert (negatives, positives) == (values.count(0), values.count(1))
    forbidden = {name for name, field in manifest.fields.items() if field.on_flip == "forbid"}
    assert forbidden == {"left", "right", "question", "tag_alpha_numeric"}


def test_the_bytes_do_not_depend_on_the_workers(root: Path, tmp_path: Path) -> None:
    def hashes(folder: Path) -> dict[str, str]:
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}

    options = {"size": 32, "limit": 40, "samples_per_shard": 25, "progress": False}
    write_icons(tmp_path / "two", workers=2, **options)
    assert hashes(tmp_path / "two") == hashes(root)
    write_icons(tmp_path / "seed", seed=1, **options)
    assert not set(hashes(tmp_path / "seed").values()) & set(hashes(root).values())


def test_bad_arguments_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"size is 8, must be from 16 to 2048 pixels; seed is -1, must be 0 or"
    ):
        write_icons(tmp_path / "new", size=8, seed=-1, progress=False)
    assert not (tmp_path / "new").exists()


def test_a_data_set_is_not_overwritten(root: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json: a data set is already here"):
        write_icons(root, progress=False)
