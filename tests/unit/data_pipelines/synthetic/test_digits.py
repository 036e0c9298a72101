"""Pairs of handwritten digits: separate writers, consistent labels, reproducible bytes."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from data_pipelines.decode.codecs import decode
from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Manifest, check_shards
from data_pipelines.synthetic.digits import FIRST_VAL_IMAGE, write_digits

COPIED_TEXT = "01234567890123456789012345678909556509898417735100227820126337334666491509528200"


def read(root: Path, split: str) -> dict[str, dict[str, np.ndarray]]:
    samples: dict[str, dict[str, np.ndarray]] = {}
    for shard in sorted(root.glob(f"{split}-*.tar")):
        with tarfile.open(shard) as tar:
            for info in tar:
                key, member = info.name.split(".", 1)
                samples.setdefault(key, {})[member] = decode(member, tar.extractfile(info).read())
    return samples


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, seed=1, train=120, val=80, portable=True, progress=False)
    return folder


def test_the_boundary_is_the_start_of_a_form() -> None:
    text = "".join(map(str, load_digits().target))
    assert text.startswith(COPIED_TEXT)
    assert text[FIRST_VAL_IMAGE:].startswith(COPIED_TEXT)


def test_val_pictures_come_from_the_last_forms(root: Path) -> None:
    data = load_digits()
    middles = data.images.astype(float)

    def best_match(half: np.ndarray) -> set[int]:
        small = half.reshape(8, 4, 8, 4).mean(axis=(1, 3)) / 255 * 16
        distance = np.abs(middles - small).mean(axis=(1, 2))
        return set(np.flatnonzero(distance <= distance.min() + 1e-9))

    for sample in list(read(root, "val").values())[:20]:
        picture = sample["image.png"][0, 16:48].astype(float)
        labels = sample["labels.json"]
        for side, half in (("left", picture[:, :32]), ("right", picture[:, 32:])):
            match = best_match(half)
            assert min(match) >= FIRST_VAL_IMAGE
            assert all(labels[f"{side}_is_{data.target[i]}"] == 1 for i in match)


def test_labels_agree_with_each_other_and_the_picture(root: Path) -> None:
    for sample in read(root, "train").values():
        labels = sample["labels.json"]
        shown = {}
        for side in ("left", "right"):
            hot = [d for d in range(10) if labels[f"{side}_is_{d}"] == 1]
            assert len(hot) == 1
            shown[side] = hot[0]
        assert labels["sum"] == shown["left"] + shown["right"]
        assert labels["two_digit_sum"] == (labels["sum"] > 9)
        names = ("left_smaller", "equal", "left_greater")
        difference = shown["left"] - shown["right"]
        assert names[labels["order"]] == names[int(np.sign(difference)) + 1]
        assert labels["ink"] == pytest.approx(sample["image.png"].mean() / 255, abs=1e-6)


def test_train_digits_vary_and_val_digits_do_not(root: Path) -> None:
    def distinct(split: str) -> tuple[int, int]:
        halves = [
            half.tobytes()
            for sample in read(root, split).values()
            for half in np.split(sample["image.png"][0], 2, axis=1)
        ]
        return len(set(halves)), len(halves)

    distinct_train, num_train = distinct("train")
    distinct_val, num_val = distinct("val")
    assert distinct_train == num_train  # 240 draws of 1287 images, all augmented differently
    assert distinct_val < num_val  # 160 draws of 510 images repeat some, and repeats are equal


def test_manifest_describes_24_tasks_and_their_statistics(root: Path) -> None:
    manifest = Manifest.load(root)
    labels = {n: f for n, f in manifest.fields.items() if f.kind != "image"}
    assert len(labels) == 24
    assert {f.kind for f in labels.values()} == {"binary", "multiclass", "regression"}
    assert manifest.image == "image"
    sums = [s["labels.json"]["sum"] for s in read(root, "train").values()]
    assert manifest.fields["sum"].mean == pytest.approx(np.mean(sums))
    assert manifest.fields["sum"].std == pytest.approx(np.std(sums))
    for name, count in (("train", 120), ("val", 80)):
        split = manifest.split(name)
        check_shards(root, split)
        assert split.num_samples == count
        assert set(split.labelled) == set(manifest.fields)
        assert set(split.labelled.values()) == {count}
    kept = {n for n, f in labels.items() if f.on_flip == "keep"}
    assert kept == {"ink"}


def test_same_seed_same_bytes(root: Path, tmp_path: Path) -> None:
    def hashes(folder: Path) -> dict[str, str]:
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}

    write_digits(tmp_path / "again", seed=1, train=120, val=80, portable=True, progress=False)
    write_digits(tmp_path / "other", seed=2, train=120, val=80, progress=False)
    assert hashes(tmp_path / "again") == hashes(root)
    assert not set(hashes(tmp_path / "other").values()) & set(hashes(root).values())


def test_jpeg_is_the_default_and_stays_close(root: Path, tmp_path: Path) -> None:
    manifest = write_digits(tmp_path, seed=1, train=120, val=80, progress=False)
    assert manifest.fields["image"].member == "image.jpg"
    exact, lossy = read(root, "val"), read(tmp_path, "val")
    for key, sample in exact.items():
        assert sample["labels.json"] == lossy[key]["labels.json"]
        difference = sample["image.png"].astype(int) - lossy[key]["image.jpg"]
        assert np.abs(difference).mean() < 3


def test_bad_arguments_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"seed is -1, must be 0 or more; val is 0, must be 1"):
        write_digits(tmp_path, seed=-1, train=5, val=0, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_data_set_is_not_overwritten(root: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json: a data set is already here"):
        write_digits(root, progress=False)
