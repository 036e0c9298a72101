"""The folders of a Taskonomy release: which domains and views are there."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipelines.errors import DataError

IMAGE = "rgb"
SEMANTIC_CLASSES = (
    "uncertain", "background", "bottle", "chair", "couch", "potted plant", "bed", "dining table",
    "toilet", "tv", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock",
    "vase",
)  # fmt: skip
_SEGMENTS = tuple(str(number) for number in range(256))
# The file names of segment_semantic say segmentsemantic: what follows `_domain_` is not checked.
_VIEW_FILE = re.compile(r"(point_\d+_view_\d+)(_domain_\w+\.png)")


@dataclass(frozen=True)
class Domain:
    """How a domain's pictures are stored in the release.

    Attributes:
        dtype_name: Type of a value.
        channels: First channels that carry something.
        classes: Names of the ids, where the values are ids.
        on_flip: As in the manifest's field.
        by_default: Whether it is converted without being asked for.
    """

    dtype_name: Literal["uint8", "uint16"]
    channels: int = 1
    classes: tuple[str, ...] = ()
    on_flip: Literal["keep", "negate_x"] = "keep"
    by_default: bool = True


# The segments of segment_unsup* are numbered anew in every picture: an id means nothing by itself.
DOMAINS: dict[str, Domain] = {
    IMAGE: Domain("uint8", channels=3),
    "depth_zbuffer": Domain("uint16"),
    "depth_euclidean": Domain("uint16"),
    "normal": Domain("uint8", channels=3, on_flip="negate_x"),
    "principal_curvature": Domain("uint8", channels=3),
    "reshading": Domain("uint8"),
    "edge_texture": Domain("uint16"),
    "edge_occlusion": Domain("uint16"),
    "keypoints2d": Domain("uint16"),
    "keypoints3d": Domain("uint16"),
    "segment_semantic": Domain("uint8", classes=SEMANTIC_CLASSES),
    "segment_unsup2d": Domain("uint8", classes=_SEGMENTS, by_default=False),
    "segment_unsup25d": Domain("uint8", classes=_SEGMENTS, by_default=False),
}


@dataclass(frozen=True)
class Tree:
    """What lies in the folders.

    Attributes:
        views: Views with an rgb file, by building.
        tails: What follows a view in the file names, by domain.
        skipped: Files that give no sample, by reason.
    """

    views: dict[str, list[str]]
    tails: dict[str, str]
    skipped: dict[str, int]


def present_domains(root: Path, tasks: Sequence[str] | None) -> list[str]:
    """rgb and the domains to convert.

    Args:
        root: Folder of the domains' folders.
        tasks: Domains asked for; None takes those that are there and make a task.

    Raises:
        DataError: rgb or a domain asked for is not there, or nobody knows how to store it.
    """
    there = [name for name in DOMAINS if (root / name).is_dir()]
    if IMAGE not in there:
        raise DataError(f"{root}: no folder {IMAGE}; a release has a folder for each domain")
    labels = [name for name in there if name != IMAGE]
    unknown = sorted(set(tasks or ()) - set(labels))
    if unknown:
        raise DataError(
            f"{root}: tasks {', '.join(unknown)}: not there or not known, allowed are "
            f"{', '.join(labels)}"
        )
    chosen = [n for n in labels if (DOMAINS[n].by_default if tasks is None else n in tasks)]
    if not chosen:
        raise DataError(f"{root}: no labels to convert, folders that can be asked for: {labels}")
    return [IMAGE, *chosen]


def list_views(root: Path, domains: Sequence[str]) -> Tree:
    """Lists the views building by building.

    Args:
        root: Folder of the domains' folders.
        domains: rgb and the domains to look into.
    """
    tails: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    views = {}
    for building in sorted({name for domain in domains for name in _folders(root / domain)}):
        with_rgb = _views(root / IMAGE / building, IMAGE, tails, skipped)
        others: set[str] = set()
        for domain in domains[1:]:
            others |= _views(root / domain / building, domain, tails, skipped)
        skipped["no rgb file"] += len(others - with_rgb)
        if with_rgb:
            views[building] = sorted(with_rgb)
    found = {domain: tails.get(domain, f"_domain_{domain}.png") for domain in domains}
    return Tree(views, found, {reason: count for reason, count in skipped.items() if count})


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir()]


def _views(folder: Path, domain: str, tails: dict[str, str], skipped: Counter[str]) -> set[str]:
    """Views that have a file in the folder; notes how the domain's first file name ends."""
    views: set[str] = set()
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except FileNotFoundError:
        return views
    for name in names:
        match = _VIEW_FILE.fullmatch(name)
        if match is None:
            skipped["file name not understood"] += 1
            continue
        views.add(match[1])
        tails.setdefault(domain, match[2])
    return views
