"""The file that maps members or columns of foreign data to fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Field


class FieldMap(BaseModel):
    """The content of a mapping file.

    Attributes:
        dataset: Name of the data set; absent, that of its folder.
        image: Field that is the input.
        subset: Configuration of a data set that has several.
        splits: Our name of a split to the source's: a split's name, or a pattern of file names.
        fields: Field to its description: a manifest's entries, where `classes` may be a count,
            with `column` instead of `member` and `key` for data sets of columns.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str | None = None
    image: str
    subset: str | None = None
    splits: dict[str, str] | None = None
    fields: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, path: Path) -> FieldMap:
        """Reads a YAML file.

        Raises:
            DataError: It cannot be read or used.
        """
        try:
            tree = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        except yaml.YAMLError as error:
            raise DataError(f"{path}: not YAML: {error}") from error
        try:
            found = cls.model_validate(tree)
        except ValidationError as error:
            raise DataError(_faults(str(path), error)) from error
        if found.fields.get(found.image, {}).get("kind") != "image":
            raise DataError(f"{path}: image {found.image!r}: must name a field of kind image")
        return found


def described_field(place: str, entry: dict[str, Any]) -> Field:
    """The field that a mapping's entry describes.

    Args:
        place: Where the entry stands, for messages.
        entry: Entries of a manifest's field.

    Raises:
        DataError: The entry contradicts itself; all faults are in one message.
    """
    classes = entry.get("classes")
    if isinstance(classes, int):
        entry = {**entry, "classes": tuple(str(number) for number in range(classes))}
    try:
        return Field.model_validate(entry)
    except ValidationError as error:
        raise DataError(_faults(place, error)) from error


def _faults(place: str, error: ValidationError) -> str:
    return "\n".join(
        ": ".join(filter(None, [place, ".".join(map(str, fault["loc"])), fault["msg"]]))
        for fault in error.errors(include_url=False)
    )
