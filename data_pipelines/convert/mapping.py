"""The mapping file, which maps members or columns of other datasets to fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from data_pipelines.errors import DataError
from data_pipelines.shards.field import MAX_CLASSES, Field
from data_pipelines.shards.manifest import FileName
from dmtg.yaml_text import YamlError, read_yaml


class FieldMap(BaseModel):
    """The content of a mapping file.

    Attributes:
        dataset: Name of the dataset; by default the name of its folder.
        image: Field that is the input.
        subset: Configuration of a dataset on the hub that has several.
        splits: By name in the manifest, the source's name of a split or a pattern of file names.
        fields: By name, the entries of a manifest's field. `classes` may be a count; for tables,
            `column` replaces `member` and `key`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str | None = None
    image: str
    subset: str | None = None
    splits: dict[FileName, str] | None = None
    fields: dict[FileName, dict[str, Any]]

    @classmethod
    def load(cls, path: Path) -> FieldMap:
        """Read a YAML file.

        Raises:
            DataError: It cannot be read or is not a valid mapping.
        """
        try:
            tree = read_yaml(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        except YamlError as error:
            raise DataError(f"{path}: {error}") from error
        try:
            field_map = cls.model_validate(tree)
        except ValidationError as error:
            raise DataError(_errors(str(path), error)) from error
        if field_map.fields.get(field_map.image, {}).get("kind") != "image":
            raise DataError(f"{path}: image {field_map.image!r}: must name a field of kind image")
        return field_map


def described_field(place: str, entry: dict[str, Any]) -> Field:
    """Return the field that an entry of a mapping describes.

    Args:
        place: Dotted path of the entry, for messages.
        entry: Entries of a manifest's field.

    Raises:
        DataError: The entry is not valid; all errors are in one message.
    """
    classes = entry.get("classes")
    if isinstance(classes, int):
        if not 0 <= classes <= MAX_CLASSES:
            raise DataError(f"{place}.classes: {classes}, allowed are at most {MAX_CLASSES}")
        entry = {**entry, "classes": tuple(str(number) for number in range(classes))}
    try:
        return Field.model_validate(entry)
    except ValidationError as error:
        raise DataError(_errors(place, error)) from error


def _errors(place: str, error: ValidationError) -> str:
    return "\n".join(
        ": ".join(filter(None, [place, ".".join(map(str, entry["loc"])), entry["msg"]]))
        for entry in error.errors(include_url=False)
    )
