"""Draw the icons and write them as shards."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from data_pipelines.decode.codecs import encode_json, encode_png
from data_pipelines.parallel import mapped
from data_pipelines.progress import counted, progress_bar
from data_pipelines.shards.encoded import EncodedSample
from data_pipelines.shards.manifest import Field, Manifest
from data_pipelines.synthetic.dataset_writer import DatasetWriter
from data_pipelines.synthetic.icons.drawing import draw, drawing_package
from data_pipelines.synthetic.icons.icon_set import SPLITS, Icon, load_icons
from data_pipelines.synthetic.icons.tasks import labels, task_names

logger = logging.getLogger(__name__)

IMAGE, IMAGE_MEMBER, LABELS_MEMBER = "image", "image.png", "labels.json"
MIN_SIZE, MAX_SIZE = 16, 2048  # pixels a side
# Labels that become wrong when the picture is mirrored.
_SIDED = frozenset({"left", "right", "question", "tag_alpha_numeric"})


@dataclass(frozen=True)
class _Drawer:
    """Draw and encode icons; an object, so that worker processes get size and tasks once."""

    size: int
    tasks: tuple[str, ...]

    def sample(self, icon: Icon) -> EncodedSample:
        scalars = labels(icon, self.tasks)
        members = {
            IMAGE_MEMBER: encode_png(draw(icon.outline, self.size)),
            LABELS_MEMBER: encode_json(scalars),
        }
        return EncodedSample(icon.name, members, scalars)


def write_icons(
    root: Path,
    size: int = 48,
    seed: int = 0,
    limit: int | None = None,
    workers: int = 1,
    samples_per_shard: int = 1000,
    progress: bool = True,
) -> Manifest:
    """Write Material Design icons as the splits train, val and test, and their manifest last.

    A picture is a black drawing on white, stored as grey PNG, which is smaller than JPEG here. The
    key of a sample is the name of the icon. The bytes of every file do not depend on the number of
    workers; the splits do not depend on the seed either.

    Args:
        root: Empty or absent folder.
        size: Pixels a side.
        seed: Any integer from 0: the order of the samples.
        limit: Number of samples of each split at most; None for all.
        workers: Number of drawing processes; 1 draws in this process.
        samples_per_shard: Number of samples in every shard but the last of a split.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: An argument is out of its range, or the package resvg_py is missing.
        DataError: `root` already holds a dataset, or the embedded file is damaged.
    """
    _check_arguments(size, seed, limit, workers, samples_per_shard)
    drawing_package()
    icons = load_icons()
    tasks = tuple(task_names(icons))
    writer = DatasetWriter(root, icon_fields(tasks), samples_per_shard)
    chosen = {split: _shuffled(icons, split, seed)[:limit] for split in SPLITS}
    total = sum(map(len, chosen.values()))
    every = chain.from_iterable(chosen.values())
    with (
        mapped(_Drawer(size, tasks).sample, every, workers) as samples,
        progress_bar(total, progress) as bar,
    ):
        for split, part in chosen.items():
            writer.write_split(split, counted(islice(samples, len(part)), bar))
    logger.info("wrote %d icons of %d pixels to %s", total, size, root)
    return writer.finish("icons", image=IMAGE)


def icon_fields(tasks: tuple[str, ...]) -> dict[str, Field]:
    """Return the image and the binary labels."""
    fields = {IMAGE: Field(member=IMAGE_MEMBER, kind="image")}
    return fields | {
        name: Field(
            member=LABELS_MEMBER,
            key=name,
            kind="binary",
            on_flip="forbid" if name in _SIDED else "keep",
        )
        for name in tasks
    }


def _check_arguments(
    size: int, seed: int, limit: int | None, workers: int, samples_per_shard: int
) -> None:
    checks = [
        ("size", size, MIN_SIZE <= size <= MAX_SIZE, f"from {MIN_SIZE} to {MAX_SIZE} pixels"),
        ("seed", seed, seed >= 0, "0 or more"),
        ("limit", limit, limit is None or limit >= 1, "at least 1"),
        ("workers", workers, workers >= 1, "at least 1"),
        ("samples_per_shard", samples_per_shard, samples_per_shard >= 1, "at least 1"),
    ]
    errors = [
        f"{name} is {value}, must be {rule}" for name, value, good, rule in checks if not good
    ]
    if errors:
        raise ValueError("; ".join(errors))


def _shuffled(icons: list[Icon], split: str, seed: int) -> list[Icon]:
    """Return the icons of a split in a random order: variants follow each other in the file."""
    of_split = [icon for icon in icons if icon.split == split]
    order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(of_split))
    return [of_split[index] for index in order]
