"""Write ray-cast rooms with exact dense labels and attributes as shards."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

from data_pipelines.parallel import mapped
from data_pipelines.progress import counted, progress_bar
from data_pipelines.shards.encoded import Storage
from data_pipelines.shards.manifest import Field, Manifest
from data_pipelines.synthetic.attributes import attribute_fields
from data_pipelines.synthetic.dataset_writer import DatasetWriter
from data_pipelines.synthetic.labels import DENSE_LABELS, SEMANTIC_CLASSES
from data_pipelines.synthetic.sample import IMAGE, RoomJob, make_sample

logger = logging.getLogger(__name__)

MIN_IMAGE_SIZE = 32
_COLOUR_LABELS = frozenset({"normal", "reshading", "principal_curvature"})


def write_rooms(
    root: Path,
    samples: int,
    image_size: int,
    seed: int,
    missing: float = 0.0,
    val_fraction: float = 0.15,
    workers: int = 1,
    samples_per_shard: int = 500,
    portable: bool = False,
    progress: bool = True,
) -> Manifest:
    """Write the splits train and val of a rooms dataset, and its manifest last.

    The bytes of every file depend on (samples, image_size, seed, missing, val_fraction,
    samples_per_shard, portable) and not on the number of workers.

    Args:
        root: Empty or absent folder.
        samples: Number of samples of both splits together.
        image_size: Side of the square pictures in pixels.
        seed: Any integer from 0.
        missing: Probability with which each label of each sample is left out.
        val_fraction: Fraction of the samples in val; without any, the split is absent.
        workers: Number of rendering processes; 1 renders in this process.
        samples_per_shard: Number of samples in every shard but the last of a split.
        portable: Store PNG instead of JPEG and planes.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: An argument is out of its range.
        DataError: `root` already holds a dataset.
    """
    _check_arguments(samples, image_size, seed, missing, val_fraction, workers)
    num_val = round(samples * val_fraction)
    counts = {"train": samples - num_val} | ({"val": num_val} if num_val else {})
    writer = DatasetWriter(root, room_fields(Storage(portable)), samples_per_shard)
    jobs = (
        RoomJob(seed, name, index, image_size, missing, portable)
        for name, count in counts.items()
        for index in range(count)
    )
    with (
        mapped(make_sample, jobs, workers) as made,
        progress_bar(samples, progress) as bar,
    ):
        for name, count in counts.items():
            writer.write_split(name, counted(islice(made, count), bar))
    logger.info("wrote %d rooms of %d pixels to %s", samples, image_size, root)
    return writer.finish("rooms", image=IMAGE)


def room_fields(storage: Storage) -> dict[str, Field]:
    """Return the image, the dense labels and the attributes, without statistics."""
    fields = {IMAGE: Field(member=storage.image_member(IMAGE), kind="image", channels=3)}
    for name in DENSE_LABELS:
        semantic = name == "segment_semantic"
        fields[name] = Field(
            member=storage.label_member(name),
            kind="dense_classification" if semantic else "dense_regression",
            channels=3 if name in _COLOUR_LABELS else 1,
            classes=SEMANTIC_CLASSES if semantic else (),
            on_flip="negate_x" if name == "normal" else "keep",
        )
    return fields | attribute_fields()


def _check_arguments(
    samples: int, image_size: int, seed: int, missing: float, val_fraction: float, workers: int
) -> None:
    checks: list[tuple[str, Any, bool, str]] = [
        ("samples", samples, samples >= 1, "at least 1"),
        (
            "image_size",
            image_size,
            image_size >= MIN_IMAGE_SIZE,
            f"at least {MIN_IMAGE_SIZE} pixels",
        ),
        ("seed", seed, seed >= 0, "0 or more"),
        ("missing", missing, 0 <= missing < 1, "in [0, 1)"),
        ("val_fraction", val_fraction, 0 <= val_fraction <= 0.5, "in [0, 0.5]"),
        ("workers", workers, workers >= 1, "at least 1"),
    ]
    errors = [
        f"{name} is {value}, must be {rule}" for name, value, good, rule in checks if not good
    ]
    if errors:
        raise ValueError("; ".join(errors))
