"""A line for each error of a configuration: dotted path, the value found, what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

from dmtg.names import shortened
from trainer.config.config import Config
from trainer.config.renamed import RENAMED_RECIPES, renamed_below
from trainer.config.section import Section
from trainer.config.unions import alternatives, section_type

_LONGEST = 200  # characters of a value in a message


@dataclass(frozen=True)
class _Place:
    """Where an error is.

    Attributes:
        path: Dotted path of the key.
        section: The section that holds the key; None inside of a value.
        choice: The value that chose this section among those of a union, else empty.
        annotation: The type of the key's value, as far as it is known.
    """

    path: str
    section: type[Section] | None
    choice: str
    annotation: Any


def error_lines(errors: Sequence[ErrorDetails]) -> list[str]:
    """Return the messages of all errors, in their order.

    A required key that is given by its old name has the message of the old name only.
    """
    places = [_locate(error["loc"]) for error in errors]
    renamed = {
        new
        for error, place in zip(errors, places, strict=True)
        if error["type"] == "extra_forbidden"
        for _, new in renamed_below(place.path, error["input"])
    }
    lines: list[str] = []
    for error, place in zip(errors, places, strict=True):
        if error["type"] == "extra_forbidden":
            lines += _unknown_key(error, place)
        elif error["type"] != "missing" or place.path not in renamed:
            lines.append(_line(error, place))
    return lines


def _unknown_key(error: ErrorDetails, place: _Place) -> list[str]:
    renamed = renamed_below(place.path, error["input"])
    if renamed:
        return [f"{old}: renamed to {new}" for old, new in renamed]
    section = place.section
    assert section is not None, "only a section has keys that are not allowed"
    of = f" of {section.noun} {place.choice!r}" if place.choice else ""
    allowed = ", ".join(sorted(section.model_fields))
    return [f"{place.path}: unknown key{of}; allowed: {allowed}"]


def _line(error: ErrorDetails, place: _Place) -> str:
    path = place.path or "config"
    if error["type"] == "missing":
        return f"{path}: required and not given"
    if error["type"] == "value_error":  # a condition between keys; its message names them
        return f"{path}: {error['msg'].removeprefix('Value error, ')}"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_choice(error, place)
    return f"{path}: found {shortened(repr(error['input']), _LONGEST)}; {error['msg']}"


def _unknown_choice(error: ErrorDetails, place: _Place) -> str:
    """Return the line for a union whose discriminator is unknown or missing."""
    choices = alternatives(place.annotation)
    key = f"{place.path}.{next(iter(choices.values())).discriminator}"
    allowed = ", ".join(choices)
    if error["type"] == "union_tag_not_found":
        return f"{key}: required and not given; allowed: {allowed}"
    value = error["ctx"]["tag"]
    if place.path == "grouping" and value in RENAMED_RECIPES:
        return f"{key}: {value!r} is renamed to {RENAMED_RECIPES[value]!r}"
    return f"{key}: found {value!r}; allowed: {allowed}"


def _locate(loc: tuple[int | str, ...]) -> _Place:
    """Return the place of an error; pydantic puts the choice of a union between the keys."""
    current: type[Section] | None = Config
    place = _Place("", None, "", Config)
    choice = ""
    choices: dict[str, type[Section]] = {}
    for part in loc:
        if choices:
            choice, current, choices = str(part), choices[str(part)], {}
            continue
        field = current.model_fields.get(str(part)) if current is not None else None
        annotation = field.annotation if field is not None else None
        path = f"{place.path}.{part}" if place.path else str(part)
        place = _Place(path, current, choice, annotation)
        choice, choices, current = "", alternatives(annotation), section_type(annotation)
    return place
