"""Samples built from the rows of a table whose columns are fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from data_pipelines.convert.dataset_files import DatasetFiles
from data_pipelines.convert.foreign import convert_image, label_picture, label_values
from data_pipelines.convert.mapping import FieldMap, described_field
from data_pipelines.convert.pictures import stored_label
from data_pipelines.convert.tally import MissingLabel, Tally
from data_pipelines.decode.codecs import encode_json
from data_pipelines.errors import DataError
from data_pipelines.reading.fields import MAX_FLOAT32
from data_pipelines.shards.encoded import EncodedSample, Storage
from data_pipelines.shards.manifest import Field

SCALARS_MEMBER = "labels.json"


@dataclass(frozen=True)
class ColumnReader:
    """Build samples from rows.

    Attributes:
        image: Field that is the input.
        columns: Column that each field is read from.
        pictures: The columns of picture files.
        fields: The fields to store.
        image_size: Pixels of the shorter side of the stored pictures; None keeps their size.
        storage: The encodings of pictures.
        files: The files that rows may name.
    """

    image: str
    columns: Mapping[str, str]
    pictures: tuple[str, ...]
    fields: Mapping[str, Field]
    image_size: int | None
    storage: Storage
    files: DatasetFiles

    def sample(self, key: str, row: Mapping[str, Any], tally: Tally) -> EncodedSample | None:
        """Return the sample of a row; None, counted in `tally`, where its image is unusable."""
        try:
            data = self._file(row[self.columns[self.image]])
            image, shape = convert_image(self.storage, data, self.image_size)
        except MissingLabel as missing:
            tally.skipped[f"image: {missing}"] += 1
            return None
        members = {self.fields[self.image].member: image}
        scalars: dict[str, int | float] = {}
        for name, field in self.fields.items():
            value = row[self.columns[name]]
            if name == self.image or value is None:
                continue
            try:
                if field.is_scalar:
                    scalars[name] = scalar_value(field, value)
                else:
                    members[field.member] = self._label(field, value, shape)
            except MissingLabel as missing:
                tally.missing[name][str(missing)] += 1
        if scalars:
            members[SCALARS_MEMBER] = encode_json(scalars)
        return EncodedSample(key, members, scalars)

    def _label(self, field: Field, value: object, shape: tuple[int, int]) -> bytes:
        if isinstance(value, Mapping | bytes):
            picture = label_picture(self._file(value), field.dtype)
        else:
            try:
                picture = label_values(np.asarray(value), field.dtype)
            except ValueError as error:  # rows of different lengths
                raise MissingLabel("not a picture of numbers") from error
        if len(picture) != field.channels:
            raise MissingLabel(f"{len(picture)} channels")
        if field.kind == "dense_classification" and not _are_ids(picture):
            raise MissingLabel("values that are no class ids")
        return stored_label(self.storage, picture, self.image_size, shape)

    def _file(self, value: object) -> bytes:
        """Return the bytes of a picture column, which holds them or names a file."""
        if isinstance(value, bytes):
            return value
        if not isinstance(value, Mapping) or not (value.get("bytes") or value.get("path")):
            raise MissingLabel("no file")
        return bytes(value["bytes"]) if value.get("bytes") else self.files.read(value["path"])


def read_columns(
    field_map: FieldMap,
    features: Mapping[str, Any],
    tasks: Sequence[str] | None,
    image_size: int | None,
    storage: Storage,
    files: DatasetFiles,
) -> ColumnReader:
    """Return the reader of the mapped columns.

    Args:
        field_map: The column of each field.
        features: The types of the columns in the `datasets` library, by name.
        tasks: Fields to take besides the image; None takes all.
        image_size: See `ColumnReader`.
        storage: See `ColumnReader`.
        files: See `ColumnReader`.

    Raises:
        DataError: The map names a column, or the tasks a field, that does not exist.
    """
    unknown = sorted(set(tasks or ()) - set(field_map.fields))
    if unknown:
        raise DataError(
            f"tasks {', '.join(unknown)}: the map has {', '.join(sorted(field_map.fields))}"
        )
    columns, fields = {}, {}
    for name, description in field_map.fields.items():
        if tasks is not None and name not in (*tasks, field_map.image):
            continue
        entry = dict(description)
        column = entry.pop("column", name)
        if column not in features:
            raise DataError(
                f"fields.{name}.column {column!r}: allowed are {', '.join(sorted(features))}"
            )
        if "classes" not in entry and hasattr(features[column], "names"):
            entry["classes"] = tuple(features[column].names)
        columns[name] = column
        fields[name] = described_field(f"fields.{name}", entry | _stored_as(name, entry, storage))
    pictures = tuple(c for c in columns.values() if isinstance(features[c], datasets.Image))
    return ColumnReader(field_map.image, columns, pictures, fields, image_size, storage, files)


def _stored_as(name: str, entry: Mapping[str, Any], storage: Storage) -> dict[str, Any]:
    kind = entry.get("kind")
    if kind == "image":
        return {"member": storage.image_member(name), "channels": 3}
    if str(kind).startswith("dense_"):
        return {"member": storage.label_member(name)}
    return {"member": SCALARS_MEMBER, "key": name}


def scalar_value(field: Field, value: object) -> int | float:
    """Return the value of a scalar field as it is stored.

    Raises:
        MissingLabel: The value is not allowed for the field's kind.
    """
    if field.kind == "regression":
        if isinstance(value, int | float) and abs(value) <= MAX_FLOAT32:  # false for NaN
            return float(value)
        raise MissingLabel("not a finite number")
    if isinstance(value, str) and value in field.classes:
        return field.classes.index(value)
    num_classes = 2 if field.kind == "binary" else len(field.classes)
    if isinstance(value, int) and 0 <= value < num_classes:
        return int(value)
    raise MissingLabel(f"not a class from 0 to {num_classes - 1}")


def _are_ids(values: np.ndarray) -> bool:
    return values.dtype.kind == "u" or bool((values == np.rint(values)).all())
