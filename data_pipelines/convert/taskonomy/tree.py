"""The folders of a Taskonomy release: its domains and views."""

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
# The files of segment_semantic are named `segmentsemantic`: the part after `_domain_` is free.
_VIEW_FILE = re.compile(r"(point_\d+_view_\d+)(_domain_\w+\.png)")


@dataclass(frozen=True)
class Domain:
    """The encoding of a domain's pictures in the release.

    Attributes:
        dtype_name: Type of a value.
        channels: Number of first channels that hold labels.
        classes: Names of the ids, where the values are ids.
        on_flip: See the manifest's field.
        by_default: Whether it is converted if no tasks are requested.
    """

    dtype_name: Literal["uint8", "uint16"]
    channels: int = 1
    classes: tuple[str, ...] = ()
    on_flip: Literal["keep", "negate_x"] = "keep"
    by_default: bool = True


# The ids of segment_unsup* are valid within one picture only: by default they are no tasks.
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
    """The content of the folders.

    Attributes:
        views: Views with an rgb file, by building.
        name_ends: The part of the file names after the view, by domain.
        skipped: Number of files without a sample, by reason.
    """

    views: dict[str, list[str]]
    name_ends: dict[str, str]
    skipped: dict[str, int]


def present_domains(root: Path, tasks: Sequence[str] | None) -> list[str]:
    """Return rgb and the domains to convert.

    Args:
        root: Folder of the domains' folders.
        tasks: Requested domains; None takes those present that are tasks by default.

    Raises:
        DataError: rgb or a requested domain is missing, or the domain is unknown.
    """
    present = [name for name in DOMAINS if (root / name).is_dir()]
    if IMAGE not in present:
        raise DataError(f"{root}: no folder {IMAGE}; a release has a folder for each domain")
    labels = [name for name in present if name != IMAGE]
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
    """List the views of every building.

    Args:
        root: Folder of the domains' folders.
        domains: rgb and the domains to convert.
    """
    name_ends: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    views = {}
    for building in sorted({name for domain in domains for name in _folders(root / domain)}):
        with_rgb = _views(root / IMAGE / building, IMAGE, name_ends, skipped)
        others: set[str] = set()
        for domain in domains[1:]:
            others |= _views(root / domain / building, domain, name_ends, skipped)
        skipped["no rgb file"] += len(others - with_rgb)
        if with_rgb:
            views[building] = sorted(with_rgb)
    complete = {domain: name_ends.get(domain, f"_domain_{domain}.png") for domain in domains}
    return Tree(views, complete, {reason: count for reason, count in skipped.items() if count})


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir()]


def _views(folder: Path, domain: str, name_ends: dict[str, str], skipped: Counter[str]) -> set[str]:
    """Return the views that have a file in the folder; record the end of the first file name."""
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
        name_ends.setdefault(domain, match[2])
    return views
