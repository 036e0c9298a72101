"""The stored field that each task learns from, and the checks of its values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.reading.values import value_text
from data_pipelines.shards.manifest import Field, Manifest

MAX_FLOAT32 = 3.4028234663852886e38
_CLASSES_OF_IMAGES = {"binary", "multiclass"}  # one may stand for the other if the classes fit


@dataclass(frozen=True)
class LabelRequest:
    """The field that a task reads.

    Attributes:
        task: Name of the task.
        field: Name of the manifest's field.
        channels: First channels of a dense field that the task uses.
        kind: Kind of the fields that the task can learn from; None allows any.
        num_classes: Number of classes that the task knows; None allows any number, and ids
            without a class.
        ignore_index: Class id of pixels without a label, which need not be one of the classes.
    """

    task: str
    field: str
    channels: int = 1
    kind: str | None = None
    num_classes: int | None = None
    ignore_index: int | None = None


@dataclass(frozen=True)
class Label:
    """A request and the manifest's description of its field.

    Attributes:
        request: The field that a task reads.
        field: Its description.
        absent: Whether no sample of the source has the field, whatever its members hold.
    """

    request: LabelRequest
    field: Field
    absent: bool = False

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
        if self.field.values and (text := value_text(value) or "") in self.field.values:
            return self.field.values[text]
        if self.field.kind == "regression":
            if _is_number(value) and abs(value) <= MAX_FLOAT32 and math.isfinite(value):
                return float(value)
            allowed = "a finite number"
        else:
            if isinstance(value, int) and 0 <= value < self.field.num_classes:
                return float(value)
            allowed = f"an integer from 0 to {self.field.num_classes - 1}"
        raise DataError(
            f"field {self.request.field}: {self.field.member} entry {self.field.key!r} is "
            f"{value!r}, allowed is {allowed}"
        )

    def check_picture(self, picture: np.ndarray) -> None:
        """Check the stored picture [C,H,W] of a dense label, whose values are not converted.

        Raises:
            DataError: Its channels or type are not the field's, or a value is neither the id of
                one of the field's classes nor the ignored one.
        """
        field, named = self.field, f"field {self.request.field}: {self.field.member}"
        if len(picture) < self.channels:
            raise DataError(
                f"{named} has {len(picture)} channels, task {self.task} needs {self.channels}"
            )
        if len(picture) != field.channels:
            raise DataError(f"{named} has {len(picture)} channels, manifest says {field.channels}")
        if field.dtype is not None and picture.dtype != field.dtype:
            raise DataError(f"{named} is {picture.dtype}, manifest says {field.dtype}")
        if field.kind == "dense_classification":
            self._check_ids(named, picture)

    def _check_ids(self, named: str, ids: np.ndarray) -> None:
        num_classes, ignored = len(self.field.classes), self.request.ignore_index
        is_bounded, kind = self.request.num_classes is not None, ids.dtype.kind
        if kind == "u" and (not is_bounded or ids.max() < num_classes):
            return  # the usual map, in one pass
        wrong = np.zeros(ids.shape, bool)
        if is_bounded:
            wrong = ids >= num_classes
            if kind != "u":
                wrong |= ids < 0
            if ignored is not None:
                wrong &= ids != ignored
        if kind == "f":  # `rint` of uint8 would compute in float16, slowly
            wrong |= ids != np.rint(ids)
        if wrong.any():
            other = "" if ignored is None else f", and {ignored}, which is ignored"
            raise DataError(
                f"{named} has the class id {ids[wrong][0]}, allowed are integers from 0 to "
                f"{num_classes - 1}{other}; `ignore_index` of the task names an id without a class"
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
        errors += _misread(request, field)
        if flip and field.on_flip == "forbid":
            errors.append(
                f"task {request.task}: field {request.field} becomes wrong when the image is "
                "mirrored, turn flipping off"
            )
        labels.append(Label(request, field))
    if errors:
        raise DataError("\n".join(errors))
    return tuple(labels)


def labels_of_source(
    manifest: Manifest, labels: Sequence[Label], source: str | None
) -> tuple[Label, ...]:
    """Return the same labels as the samples of a source hold them.

    Args:
        manifest: Manifest of the shards.
        labels: As `resolve_labels` returns them.
        source: That of a shard; None where there are no sources.
    """
    fields = manifest.fields_of(source)
    return tuple(
        replace(label, field=fields[label.request.field])
        if label.request.field in fields
        else replace(label, absent=True)
        for label in labels
    )


def _misread(request: LabelRequest, field: Field) -> list[str]:
    """Return the errors of a task that would take the field's values for something else."""
    named = f"task {request.task}: "
    kinds = {field.kind, request.kind or field.kind}
    if len(kinds) > 1 and kinds != _CLASSES_OF_IMAGES:
        return [
            f"{named}its kind learns from fields of kind {request.kind}, field {request.field} is "
            f"of kind {field.kind}"
        ]
    if request.num_classes is not None and field.num_classes > request.num_classes:
        return [
            f"{named}{request.num_classes} classes, field {request.field} has {field.num_classes}"
        ]
    return []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
