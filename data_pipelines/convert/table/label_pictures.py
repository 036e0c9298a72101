"""The kind of a column of label pictures, inferred from some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipelines.convert.foreign import label_picture
from data_pipelines.convert.table.files import TableFiles
from data_pipelines.convert.table.kinds import InferredKind
from data_pipelines.convert.tally import MissingLabel

MAX_PICTURES, MAX_REMOTE_PICTURES = 1000, 20  # that are read to infer a kind
_MAX_IDS = 32  # different values in most pictures of class ids; other labels have more
_MAX_ID = 1000
_VOID = 255  # of pixels without a class, by convention
_JPEG_START = b"\xff\xd8"


def infer_pictures(files: TableFiles, paths: Sequence[str], *, progress: bool) -> InferredKind:
    """Return the kind of a column of label pictures.

    A picture of few different integers has class ids; other pictures have values.

    Args:
        files: The files of the table.
        paths: The different paths of the column.
        progress: Whether to show a progress bar.
    """
    most = MAX_REMOTE_PICTURES if files.is_remote(paths[0]) else MAX_PICTURES
    step = -(-len(paths) // most)
    pictures, faults = [], set()
    for path in tqdm(paths[::step], disable=not progress, unit=" label pictures", leave=False):
        try:
            data = files.read(path)
            if data.startswith(_JPEG_START):
                return InferredKind(None, "JPEG changes values: no labels")
            pictures.append(_facts(label_picture(data)))
        except MissingLabel as missing:  # noqa: PERF203
            faults.add(str(missing))
    if not pictures:
        return InferredKind(None, f"pictures: {', '.join(sorted(faults))}")
    shapes = {(channels, dtype) for channels, dtype, _ in pictures}
    if len(shapes) > 1:
        found = ", ".join(f"{channels} x {dtype}" for channels, dtype in sorted(shapes))
        return InferredKind(None, f"pictures of several types: {found}")
    channels, dtype = shapes.pop()
    note = "" if step == 1 else f"from {len(pictures)} pictures"
    ids = [found for _, _, found in pictures if found is not None]
    if channels == 1 and len(ids) * 2 > len(pictures):
        return _classes(np.unique(np.concatenate(ids)), note)
    entry: dict[str, Any] = {"kind": "dense_regression", "dtype": dtype}
    return InferredKind(entry | ({"channels": channels} if channels > 1 else {}), note)


def _facts(picture: np.ndarray) -> tuple[int, str, np.ndarray | None]:
    """Return channels, type, and the values if they can be class ids."""
    values = np.unique(picture) if picture.dtype.kind == "u" else np.empty(0)
    largest = int(values.max()) if values.size else _MAX_ID
    are_ids = values.size <= _MAX_IDS and largest < _MAX_ID
    return len(picture), str(picture.dtype), values if are_ids else None


def _classes(values: np.ndarray, note: str) -> InferredKind:
    """Return the kind of pictures with these class ids."""
    found = [int(value) for value in values]
    if found in ([0, _VOID], [_VOID]):
        entry = {"kind": "dense_classification", "classes": 2, "values": {_VOID: 1}}
        return InferredKind(entry, _joined(note, "255 becomes class 1"))
    number = max((value for value in found if value != _VOID), default=0) + 1
    if _VOID in found:
        note = _joined(note, "255 has no class: `ignore_index: 255` in the task")
    return InferredKind({"kind": "dense_classification", "classes": max(number, 2)}, note)


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))
