"""Pairs of real handwritten digits side by side, from the dataset that scikit-learn includes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from tqdm import tqdm

from data_pipelines.decode.codecs import encode_json
from data_pipelines.progress import progress_bar
from data_pipelines.shards.encoded import EncodedSample, Storage
from data_pipelines.shards.manifest import Field, Manifest
from data_pipelines.synthetic.dataset_writer import DatasetWriter

logger = logging.getLogger(__name__)

FIRST_VAL_IMAGE = 1287
PICTURE = 64  # pixels a side
IMAGE, LABELS_MEMBER = "image", "labels.json"
ORDERS = ("left_smaller", "equal", "left_greater")
_SIDES = ("left", "right")
_DIGIT = PICTURE // 2  # pixels a side
_MAX_INK = 16.0  # of scikit-learn's pixels
_MAX_SHIFT = 3.0  # pixels
_MAX_TURN = 0.2  # radians
_MIN_CONTRAST = 0.7
_SAMPLES_PER_SHARD = 1000


def write_digits(
    root: Path,
    seed: int = 0,
    train: int = 6000,
    val: int = 1500,
    portable: bool = False,
    progress: bool = True,
) -> Manifest:
    """Write pairs of digits as the splits train and val, with 24 scalar labels each.

    scikit-learn's digits are the test part of the UCI dataset "Optical Recognition of Handwritten
    Digits", in the order of the scanned forms. Every writer copied the same text, so the targets
    repeat a sequence of about 130 digits 14 times, with a few digits missing. The documentation
    counts 13 writers, so one of them may have filled in two forms. Image 1287 is the first of the
    eleventh form: the first ten forms are train, the last four are val, and no form is in both.

    An image is 64x64 grey with a digit in each half. Training digits are shifted, rotated by a
    small angle and vary in contrast; val digits are not augmented.

    Args:
        root: Empty or absent folder.
        seed: Any integer from 0.
        train: Number of pairs drawn from the training forms.
        val: Number of pairs drawn from the other forms.
        portable: Store PNG instead of JPEG.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: A count or the seed is out of its range.
        DataError: `root` already holds a dataset.
    """
    limits = {"seed": (seed, 0), "train": (train, 1), "val": (val, 1)}
    errors = [
        f"{k} is {v}, must be {least} or more" for k, (v, least) in limits.items() if v < least
    ]
    if errors:
        raise ValueError("; ".join(errors))
    storage = Storage(portable)
    writer = DatasetWriter(root, digit_fields(storage), _SAMPLES_PER_SHARD)
    with progress_bar(train + val, progress) as bar:
        for name, count in (("train", train), ("val", val)):
            writer.write_split(name, _pairs(name, count, seed, storage, bar))
    logger.info("wrote %d pairs of digits to %s", train + val, root)
    return writer.finish("digits", image=IMAGE)


def digit_fields(storage: Storage) -> dict[str, Field]:
    """Return the image and the 24 labels, without statistics of regressions.

    A mirrored digit is not a digit: `ink` is the only label that allows a flip.
    """
    fields = {IMAGE: Field(member=storage.image_member(IMAGE), kind="image")}
    binaries = [f"{side}_is_{digit}" for side in _SIDES for digit in range(10)]
    for name in (*binaries, "two_digit_sum"):
        fields[name] = Field(member=LABELS_MEMBER, key=name, kind="binary", on_flip="forbid")
    fields["order"] = Field(
        member=LABELS_MEMBER, key="order", kind="multiclass", classes=ORDERS, on_flip="forbid"
    )
    fields["sum"] = Field(member=LABELS_MEMBER, key="sum", kind="regression", on_flip="forbid")
    fields["ink"] = Field(member=LABELS_MEMBER, key="ink", kind="regression")
    return fields


def _pairs(
    split: str, count: int, seed: int, storage: Storage, bar: tqdm[Any]
) -> Iterator[EncodedSample]:
    data = load_digits()
    part = slice(None, FIRST_VAL_IMAGE) if split == "train" else slice(FIRST_VAL_IMAGE, None)
    images, targets = data.images[part], data.target[part]
    rng = np.random.default_rng([seed, split == "train"])
    for index in range(count):
        chosen = rng.integers(0, len(targets), len(_SIDES))
        halves = [_render(images[i], rng if split == "train" else None) for i in chosen]
        picture = np.concatenate(halves, axis=1)  # [H, W]
        labels = _labels(int(targets[chosen[0]]), int(targets[chosen[1]]), picture)
        members = {
            storage.image_member(IMAGE): storage.encode_image(picture),
            LABELS_MEMBER: encode_json(labels),
        }
        yield EncodedSample(f"{split}-{index:07d}", members, labels)
        bar.update()


def _render(digit: NDArray[np.float64], augment: np.random.Generator | None) -> NDArray[np.uint8]:
    """Return an 8x8 digit enlarged, white on black, in one half of the picture, [H, W / 2]."""
    levels = Image.fromarray((digit * (255.0 / _MAX_INK)).astype(np.float32))
    half = Image.new("F", (PICTURE // 2, PICTURE))
    enlarged = levels.resize((_DIGIT, _DIGIT), Image.Resampling.BICUBIC)
    half.paste(enlarged, (0, (PICTURE - _DIGIT) // 2))
    contrast = 1.0
    if augment is not None:
        contrast = augment.uniform(_MIN_CONTRAST, 1.0)
        half = half.transform(
            half.size, Image.Transform.AFFINE, _motion(augment), Image.Resampling.BILINEAR
        )
    return np.clip(np.rint(contrast * np.asarray(half)), 0, 255).astype(np.uint8)


def _motion(rng: np.random.Generator) -> tuple[float, ...]:
    """Return a random rotation about the middle and a shift, as Pillow's six affine numbers."""
    angle = rng.uniform(-_MAX_TURN, _MAX_TURN)
    shift_x, shift_y = rng.uniform(-_MAX_SHIFT, _MAX_SHIFT, 2)
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    x, y = PICTURE / 4, PICTURE / 2  # middle of one half
    return (
        cosine, sine, x - cosine * (x + shift_x) - sine * (y + shift_y),
        -sine, cosine, y + sine * (x + shift_x) - cosine * (y + shift_y),
    )  # fmt: skip


def _labels(left: int, right: int, picture: NDArray[np.uint8]) -> dict[str, int | float]:
    labels: dict[str, int | float] = {
        f"{side}_is_{digit}": int(target == digit)
        for side, target in zip(_SIDES, (left, right), strict=True)
        for digit in range(10)
    }
    return labels | {
        "two_digit_sum": int(left + right >= 10),
        "order": 1 + (left > right) - (left < right),
        "sum": left + right,
        "ink": round(float(picture.mean()) / 255.0, 6),
    }
