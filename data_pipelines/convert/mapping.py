"""The mapping file, which maps members or columns of other datasets to fields."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic import Field as Bound
from pydantic_core import ErrorDetails

from data_pipelines.convert.values import binary
from data_pipelines.errors import DataError
from data_pipelines.reading.values import value_text
from data_pipelines.shards.field import MAX_CLASSES, Field
from data_pipelines.shards.manifest import FileName
from dmtg.names import shortened
from dmtg.suggestions import did_you_mean
from dmtg.yaml_text import YamlError, read_yaml


class FieldMap(BaseModel):
    """The content of a mapping file.

    Attributes:
        dataset: Name of the dataset; by default the name of its folder.
        image: Field that is the input.
        subset: Configuration of a dataset on the hub that has several.
        splits: By name in the manifest, the source's name of a split, which may be a slice as in
            `train[:80%]`, a value of `split_column`, or a pattern of file names.
        split_column: Column of a table that names the split of each row.
        val_share: Share of the samples of `train` that become the split `val`.
        group_by: Column whose equal values stay in one split when `val_share` divides.
        fields: By name, the entries of a manifest's field. `classes` may be a count, `values` may
            name classes. For tables, `column` replaces `member` and `key`, and `suffix` is added
            to the paths of pictures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str | None = None
    image: str
    subset: str | None = None
    splits: dict[FileName, str] | None = None
    split_column: str | None = None
    val_share: Annotated[float, Bound(ge=0, lt=1)] | None = None
    group_by: str | None = None
    fields: dict[FileName, dict[str, Any]]

    @classmethod
    def checked(cls, place: str, tree: object) -> FieldMap:
        """Return the mapping of plain values.

        Args:
            place: The file or option that they come from, for messages.
            tree: The values.

        Raises:
            DataError: They are not a valid mapping.
        """
        if isinstance(tree, Mapping) and isinstance(tree.get("splits"), Mapping):
            texts = {
                name: _text(f"{place}: splits", value) for name, value in tree["splits"].items()
            }
            tree = {**tree, "splits": texts}
        try:
            field_map = cls.model_validate(tree)
        except ValidationError as error:
            raise DataError(_errors(place, error, cls)) from error
        if field_map.fields.get(field_map.image, {}).get("kind") != "image":
            raise DataError(f"{place}: image {field_map.image!r}: must name a field of kind image")
        return field_map

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
        return cls.checked(str(path), tree)

    def updated(self, **changes: object) -> FieldMap:
        """Return the mapping with other entries; an entry that is None stays as it is.

        Raises:
            DataError: It is then not valid.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        return self.checked("options", {**self.model_dump(exclude_unset=True), **given})


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
    elif isinstance(classes, list | tuple):
        entry = {**entry, "classes": tuple(_text(f"{place}.classes", name) for name in classes)}
    if isinstance(entry.get("values"), Mapping):
        entry = {**entry, "values": _values(place, entry)}
    try:
        return Field.model_validate(entry)
    except ValidationError as error:
        raise DataError(_errors(place, error, Field)) from error


def _values(place: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with texts as keys, and class ids in place of the names of classes."""
    classes = entry.get("classes") or ()
    result = {}
    for key, meaning in entry["values"].items():
        if isinstance(meaning, str) and meaning in classes:
            meaning = classes.index(meaning)
        elif isinstance(meaning, str | bool) and entry.get("kind") == "binary":
            word = binary(value_text(meaning) or "")
            meaning = meaning if word is None else word
        result[_text(f"{place}.values", key)] = meaning
    return result


def _text(place: str, value: Any) -> Any:  # noqa: ANN401 - any YAML value
    """Return the text of a class or a value that YAML may have read as a number.

    Raises:
        DataError: YAML has read it as true, false or null.
    """
    if isinstance(value, bool) or value is None:
        word = {True: "true", False: "false", None: "null"}[value]
        raise DataError(
            f"{place}: found {word}, for which YAML also takes words such as yes, no, on, off and "
            "~; put the word in quotes"
        )
    return value_text(value) or "" if isinstance(value, str | int | float) else value


# What is allowed, by the type of pydantic's error; `{}` stands for the value of its context.
_ALLOWED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "a number above {}",
    "greater_than_equal": "a number of at least {}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than": "a number below {}",
    "less_than_equal": "a number of at most {}",
    "literal_error": "{}",
    "model_type": "a mapping",
    "string_type": "text",
    "tuple_type": "a list",
}


def _errors(place: str, error: ValidationError, model: type[BaseModel]) -> str:
    """Return the errors of a mapping for a model, a line each."""
    return "\n".join(
        ": ".join(filter(None, [place, ".".join(map(str, entry["loc"])), _message(entry, model)]))
        for entry in error.errors(include_url=False)
    )


def _message(entry: ErrorDetails, model: type[BaseModel]) -> str:
    if entry["type"] == "missing":
        return "required and not given"
    if entry["type"] == "value_error":  # its input is the whole object
        return entry["msg"].removeprefix("Value error, ")
    if entry["type"] == "extra_forbidden":
        keys = sorted(model.model_fields)
        return f"unknown key; allowed: {', '.join(keys)}{did_you_mean(entry['loc'][-1], keys)}"
    allowed = _ALLOWED.get(entry["type"])
    found = shortened(repr(entry["input"]))
    if allowed is None:
        return f"{entry['msg']}, found {found}"
    context = next(iter(entry.get("ctx", {}).values()), "")
    return f"found {found}; allowed: {allowed.format(context)}"
