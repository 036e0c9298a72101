"""Samples built from the rows of a table whose columns are fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as with_default
from typing import Any, Protocol

import datasets
import numpy as np

from data_pipelines.convert.foreign import convert_image, label_picture, label_values
from data_pipelines.convert.mapping import FieldMap, described_field
from data_pipelines.convert.pictures import stored_label
from data_pipelines.convert.tally import MissingLabel, Tally
from data_pipelines.convert.values import ValueReader
from data_pipelines.decode.codecs import encode_json
from data_pipelines.errors import DataError
from data_pipelines.shards.encoded import EncodedSample, Storage
from data_pipelines.shards.field import SCALAR_KINDS
from data_pipelines.shards.manifest import Field
from dmtg.names import shortened
from dmtg.suggestions import did_you_mean, listed

SCALARS_MEMBER = "labels.json"


class PictureFiles(Protocol):
    """The files that the rows of a table may name."""

    def read(self, path: str) -> bytes:
        """Return the content of a file.

        Raises:
            DataError: The row may not name this file.
            MissingLabel: It cannot be read.
        """


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
        values: The reader of each scalar field.
        suffixes: By field of pictures, what is added to the path in a cell, such as `.jpg`.
        pixels: By field of class ids for each pixel, the class ids of other pixel values.
    """

    image: str
    columns: Mapping[str, str]
    pictures: tuple[str, ...]
    fields: Mapping[str, Field]
    image_size: int | None
    storage: Storage
    files: PictureFiles
    values: Mapping[str, ValueReader] = with_default(default_factory=dict)
    suffixes: Mapping[str, str] = with_default(default_factory=dict)
    pixels: Mapping[str, Mapping[int, int]] = with_default(default_factory=dict)

    def sample(self, key: str, row: Mapping[str, Any], tally: Tally) -> EncodedSample | None:
        """Return the sample of a row; None, counted in `tally`, where its image is unusable."""
        try:
            data = self._file(self.image, row[self.columns[self.image]])
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
                    self._add_scalar(name, value, scalars, tally)
                else:
                    members[field.member] = self._label(name, field, value, shape)
            except MissingLabel as missing:
                tally.missing[name][str(missing)] += 1
        if scalars:
            members[SCALARS_MEMBER] = encode_json(scalars)
        return EncodedSample(key, members, scalars)

    def _add_scalar(
        self, name: str, value: object, scalars: dict[str, int | float], tally: Tally
    ) -> None:
        reader = self.values[name]
        stored = reader.read(value)
        if stored is None:
            return
        scalars[name] = stored
        if reader.kind == "binary" and stored == 0 and (word := reader.negative(value)):
            tally.negatives[name].add(word)

    def _label(self, name: str, field: Field, value: object, shape: tuple[int, int]) -> bytes:
        if isinstance(value, Mapping | bytes | str):
            picture = label_picture(self._file(name, value), field.dtype)
        else:
            try:
                picture = label_values(np.asarray(value), field.dtype)
            except ValueError as error:  # rows of different lengths
                raise MissingLabel("not a picture of numbers") from error
        if len(picture) != field.channels:
            raise MissingLabel(f"{len(picture)} channels")
        if field.kind == "dense_classification" and not _are_ids(picture):
            raise MissingLabel("values that are no class ids")
        if name in self.pixels:
            picture = _replaced(picture, self.pixels[name])
        return stored_label(self.storage, picture, self.image_size, shape)

    def paths(self, row: Mapping[str, Any]) -> list[str]:
        """Return the paths of the picture files that a row names."""
        named = {n: row[self.columns[n]] for n, f in self.fields.items() if not f.is_scalar}
        return [p + self.suffixes.get(n, "") for n, p in named.items() if isinstance(p, str)]

    def _file(self, name: str, value: object) -> bytes:
        """Return the bytes of a picture column, which holds them or names a file."""
        if isinstance(value, bytes):
            return value
        if isinstance(value, Mapping) and value.get("bytes"):
            return bytes(value["bytes"])
        path = value.get("path") if isinstance(value, Mapping) else value
        if not isinstance(path, str) or not path:
            raise MissingLabel("no file")
        return self.files.read(path + self.suffixes.get(name, ""))


def read_columns(
    field_map: FieldMap,
    features: Mapping[str, Any],
    tasks: Sequence[str] | None,
    image_size: int | None,
    storage: Storage,
    files: PictureFiles,
) -> ColumnReader:
    """Return the reader of the mapped columns.

    Args:
        field_map: The column of each field.
        features: The columns by name, with their types in the `datasets` library where it reads
            them.
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
    columns, fields, values, pixels = {}, {}, {}, {}
    suffixes: dict[str, str] = {}
    for name, description in field_map.fields.items():
        if tasks is not None and name not in (*tasks, field_map.image):
            continue
        entry = dict(description)
        column = columns[name] = entry.pop("column", name)
        _check_column(f"fields.{name}.column", column, features)
        if "suffix" in entry and entry.get("kind") not in SCALAR_KINDS:
            suffixes[name] = str(entry.pop("suffix"))
        is_class = hasattr(features[column], "names")
        if "classes" not in entry and is_class:
            entry["classes"] = tuple(features[column].names)
        if entry.get("kind") == "dense_classification" and "values" in entry:
            pixels[name] = _pixel_values(f"fields.{name}.values", entry.pop("values"))
        field = described_field(f"fields.{name}", entry | _stored_as(name, entry, storage))
        if field.is_scalar:
            values[name] = ValueReader.of_field(field, numbers_are_ids=is_class)
        fields[name] = field.model_copy(update={"values": {}})  # what is stored are ids
    if field_map.group_by is not None:
        _check_column("group_by", field_map.group_by, features)
    pictures = tuple(c for c in columns.values() if isinstance(features[c], datasets.Image))
    return ColumnReader(
        field_map.image,
        columns,
        pictures,
        fields,
        image_size,
        storage,
        files,
        values,
        suffixes,
        pixels,
    )


def _check_column(place: str, column: str, features: Mapping[str, Any]) -> None:
    if column not in features:
        raise DataError(f"{place} {column!r}: {allowed_names(column, features)}")


def allowed_names(name: str, names: Iterable[str]) -> str:
    """Return the end of a message on a name that does not exist: the others, and the nearest."""
    names = sorted(names)
    return f"no such column; allowed: {listed(names)}{did_you_mean(name, names)}"


def _stored_as(name: str, entry: Mapping[str, Any], storage: Storage) -> dict[str, Any]:
    kind = entry.get("kind")
    if kind == "image":
        return {"member": storage.image_member(name), "channels": 3}
    if str(kind).startswith("dense_"):
        return {"member": storage.label_member(name)}
    return {"member": SCALARS_MEMBER, "key": name}


def _pixel_values(place: str, values: object) -> dict[int, int]:
    """Return the class ids of pixel values.

    Raises:
        DataError: They are no pairs of integers that a picture can hold.
    """
    allowed = range(2**16)
    pairs = values.items() if isinstance(values, Mapping) else ()
    if not pairs or any(type(v) is not int or v not in allowed for pair in pairs for v in pair):
        raise DataError(
            f"{place}: found {shortened(repr(values))}; allowed are a class id for each pixel "
            "value, integers from 0 to 65535"
        )
    return dict(pairs)


def _replaced(picture: np.ndarray, ids: Mapping[int, int]) -> np.ndarray:
    fits = picture.dtype != np.uint8 or max(ids.values()) < 2**8
    result = picture.copy() if fits else picture.astype(np.uint16)
    for value, number in ids.items():
        result[picture == value] = number
    return result


def _are_ids(values: np.ndarray) -> bool:
    return values.dtype.kind == "u" or bool((values == np.rint(values)).all())
