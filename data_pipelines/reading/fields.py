"""The stored field that each task learns from, and the checks of its values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Field, Manifest

MAX_FLOAT32 = 3.4028234663852886e38


@dataclass(frozen=True)
class LabelRequest:
    """The field that a task reads.

    Attributes:
        task: Name of the task.
        field: Name of the manifest's field.
        channels: First channels of a dense field that the task uses.
    """

    task: str
    field: str
    channels: int = 1


@dataclass(frozen=True)
class Label:
    """A request and the manifest's description of its field."""

    request: LabelRequest
    field: Field

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.request.task

    @property
    def channels(self) -> int:
        """Number of channels that the task uses."""
        return self.request.channels

    def scalar(self, record: dict[str, Any]) -> float | None:
        """Return the value in a sample's JSON record; None where the sample has none.

        Raises:
            DataError: The value is not allowed for the field's kind.
        """
        if self.field.key not in record:
            return None
        value = record[self.field.key]
        if self.field.kind == "regression":
            if _is_number(value) and abs(value) <= MAX_FLOAT32 and math.isfinite(value):
                return float(value)
            allowed = "a finite number"
        else:
            num_classes = 2 if self.field.kind == "binary" else len(self.field.classes)
            if isinstance(value, int) and 0 <= value < num_classes:
                return float(value)
            allowed = f"an integer from 0 to {num_classes - 1}"
        raise DataError(
            f"field {self.request.field}: {self.field.member} entry {self.field.key!r} is "
            f"{value!r}, allowed is {allowed}"
        )


def resolve_labels(
    manifest: Manifest, split: str | None, requests: Sequence[LabelRequest], *, flip: bool
) -> tuple[Label, ...]:
    """Return the label of every request, with the field of the manifest.

    Args:
        manifest: Manifest of the shards.
        split: Name of the split that will be read; None for tars without label counts.
        requests: One per task.
        flip: Whether samples will be mirrored.

    Raises:
        DataError: Requests cannot be met; all are in one message.
    """
    labelled = None if split is None else manifest.split(split).labelled
    labels, errors = [], []
    tasks: set[str] = set()
    for request in requests:
        if request.task in tasks:
            errors.append(f"task {request.task}: requested more than once")
        tasks.add(request.task)
        field = manifest.fields.get(request.field)
        if field is None or field.kind == "image":
            known = sorted(name for name, f in manifest.fields.items() if f.kind != "image")
            errors.append(
                f"task {request.task}: no label field {request.field!r} in {manifest.dataset}, "
                f"allowed are {', '.join(known)}"
            )
            continue
        if labelled is not None and not labelled.get(request.field):
            errors.append(
                f"task {request.task}: no labels in split {split} of {manifest.dataset} "
                f"(field {request.field})"
            )
        stored = 1 if field.is_scalar else field.channels
        if not 1 <= request.channels <= stored:
            errors.append(
                f"task {request.task}: channels {request.channels}, field {request.field} has "
                f"{stored}"
            )
        if flip and field.on_flip == "forbid":
            errors.append(
                f"task {request.task}: field {request.field} becomes wrong when the image is "
                "mirrored, turn flipping off"
            )
        labels.append(Label(request, field))
    if errors:
        raise DataError("\n".join(errors))
    return tuple(labels)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
