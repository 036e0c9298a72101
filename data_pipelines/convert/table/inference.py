"""The mapping of a table that comes without one."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow

from data_pipelines.convert.columns import allowed_names
from data_pipelines.convert.mapping import FieldMap
from data_pipelines.convert.splits import SPLIT_NAMES
from data_pipelines.convert.table.files import TableFiles, is_url
from data_pipelines.convert.table.kinds import InferredKind, infer_kind
from data_pipelines.convert.table.label_pictures import infer_pictures
from data_pipelines.convert.table.splits import usual_splits
from data_pipelines.convert.table.summary import cell_counts
from data_pipelines.errors import DataError
from dmtg.names import is_file_name, to_file_name

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
_IMAGE_NAMES = ("image", "img", "photo", "picture", "file", "filename", "path", "url", "rgb")
_SPLIT_COLUMNS = frozenset({"split", "partition", "set", "subset"})
_GROUP_NAMES = frozenset(
    {"person", "patient", "subject", "identity", "user", "participant", "video", "scene", "group"}
)
_MOST = 0.9  # share of a column's cells that are paths
_TRIED = 20  # names of files without a suffix that are looked for


@dataclass(frozen=True)
class InferredMap:
    """The mapping of a table, and what else is said about its columns.

    Attributes:
        field_map: The mapping.
        notes: What to tell the user about a column, by its name.
    """

    field_map: FieldMap
    notes: Mapping[str, str]


def infer_map(
    table: pyarrow.Table,
    files: TableFiles,
    *,
    dataset: str,
    image_column: str | None,
    split_column: str | None,
    group_by: str | None,
    progress: bool,
) -> InferredMap:
    """Return the mapping of a table.

    Args:
        table: Its columns as texts.
        files: The files that rows may name.
        dataset: Name of the dataset.
        image_column: Column of the images; None finds it.
        split_column: Column that names the split of each row; None finds it, if there is one.
        group_by: Column whose equal values stay in one split.
        progress: Whether to show a progress bar.

    Raises:
        DataError: A named column does not exist, or no column names images.
    """
    for place, name in (
        ("--image-column", image_column),
        ("--split-column", split_column),
        ("--group-by", group_by),
    ):
        if name is not None and name not in table.column_names:
            raise DataError(f"{place} {name!r}: {allowed_names(name, table.column_names)}")
    counts = {name: cell_counts(table[name]) for name in table.column_names}
    split_column = split_column or _split_column(counts)
    others = [name for name in table.column_names if name not in (split_column, group_by)]
    image, suffix = _image_column(counts, others, files, image_column)
    fields: dict[str, dict[str, Any]] = {}
    notes: dict[str, str] = {}
    names: dict[str, str] = {}
    for column in others:
        if column == image:
            inferred = InferredKind({"kind": "image"} | ({"suffix": suffix} if suffix else {}))
        elif counts[column] and _are_paths(counts[column]):
            inferred = infer_pictures(files, list(counts[column]), progress=progress)
        else:
            inferred = infer_kind(column, counts[column])
        notes[column] = inferred.note or _group_hint(column, inferred)
        if inferred.entry is not None:
            is_picture = inferred.entry["kind"] == "image" or "dense" in inferred.entry["kind"]
            name = names[column] = _field_name(column, fields, is_picture=is_picture)
            fields[name] = ({"column": column} if name != column else {}) | inferred.entry
    tree: dict[str, Any] = {"dataset": dataset, "image": names[image]}
    if split_column is not None:
        tree |= {"split_column": split_column, "splits": usual_splits(counts[split_column])}
    if group_by is not None:
        tree["group_by"] = group_by
    return InferredMap(FieldMap.checked("the table", tree | {"fields": fields}), notes)


def _split_column(counts: Mapping[str, Mapping[str, int]]) -> str | None:
    for name, texts in counts.items():
        known = {SPLIT_NAMES.get(text.casefold()) for text in texts}
        if name.casefold() in _SPLIT_COLUMNS and len(known) > 1 and None not in known:
            return name
    return None


def _image_column(
    counts: Mapping[str, Mapping[str, int]],
    columns: Sequence[str],
    files: TableFiles,
    named: str | None,
) -> tuple[str, str]:
    """Return the column of the images, and the suffix that its paths lack.

    Raises:
        DataError: No column names images.
    """
    if named is not None:
        is_path = bool(counts[named]) and _are_paths(counts[named])
        return named, "" if is_path else _missing_suffix(counts[named], files)
    paths = [name for name in columns if counts[name] and _are_paths(counts[name])]
    if paths:
        return max(paths, key=_named_like_images), ""
    for name in sorted(columns, key=_named_like_images, reverse=True):
        suffix = _missing_suffix(counts[name], files)
        if suffix:
            return name, suffix
    raise DataError(
        f"no column has paths or URLs of pictures, which end with {', '.join(PICTURE_SUFFIXES)} "
        f"or begin with http:// or https://; name it by --image-column (columns: "
        f"{', '.join(columns[:20])}), and the folder of the files by --images"
    )


def _are_paths(texts: Mapping[str, int]) -> bool:
    paths = sum(c for t, c in texts.items() if is_url(t) or t.lower().endswith(PICTURE_SUFFIXES))
    return paths >= _MOST * sum(texts.values())


def _named_like_images(name: str) -> int:
    """Return how much a name is like that of a column of images."""
    words = re.split(r"[\W_]+", name.casefold())
    ranks = [len(_IMAGE_NAMES) - _IMAGE_NAMES.index(word) for word in words if word in _IMAGE_NAMES]
    return max(ranks, default=0)


def _missing_suffix(texts: Mapping[str, int], files: TableFiles) -> str:
    """Return the suffix with which most of some names are files; empty if there is none."""
    if "://" in files.root:
        return ""
    tried = [text for text in list(texts)[:_TRIED] if ".." not in text]
    for suffix in PICTURE_SUFFIXES:
        for end in (suffix, suffix.upper()):
            found = sum(Path(files.root, text + end).is_file() for text in tried)
            if found * 2 > len(tried):
                return end
    return ""


def _field_name(column: str, taken: Collection[str], *, is_picture: bool) -> str:
    """Return the name of a column's field: the column's own where files can have it."""
    name = column if is_file_name(column) else to_file_name(column)
    if is_picture:  # it becomes the suffix of a member
        name = re.sub(r"[^A-Za-z0-9_-]", "_", name).lstrip("_-") or "picture"
    number, unique = 2, name
    while unique in taken:
        unique, number = f"{name[:90]}_{number}", number + 1
    return unique


def _group_hint(column: str, inferred: InferredKind) -> str:
    words = set(re.split(r"[\W_]+", column.casefold()))
    if inferred.entry is not None and inferred.entry["kind"] == "image":
        return ""
    return f"--group-by {column} keeps each in one split" if words & _GROUP_NAMES else ""
