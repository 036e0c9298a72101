"""A line for each error of a configuration: dotted path, the value found, what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic_core import ErrorDetails

from dmtg.names import shortened
from dmtg.suggestions import did_you_mean, listed
from trainer.config.allowed import KeysOf, Type, allowed, in_yaml
from trainer.config.config import Config
from trainer.config.renamed import RENAMED_RECIPES, renamed_below
from trainer.config.section import Section
from trainer.config.suggestions import suggest_key
from trainer.config.unions import alternatives, section_type

_LONGEST = 200  # characters of a value in a message
_OF_LIBRARIES = "; models of libraries: {name: timm, options: {model: resnet18}}, docs/encoders.md"


@dataclass(frozen=True)
class _Place:
    """Where an error is.

    Attributes:
        path: Dotted path of the key.
        section: The section that holds the key; None inside of a value.
        choice: The value that chose this section among those of a union, else empty.
        of: The type of the key's value; None if it is not known.
        is_key: Whether the error is about a key of a mapping rather than its value.
    """

    path: str
    section: type[Section] | None
    choice: str
    of: Type | None
    is_key: bool = False


def error_lines(errors: Sequence[ErrorDetails]) -> list[str]:
    """Return the messages of all errors, in their order, each once.

    A required key that is given by its old name has the message of the old name only.
    """
    places = [_locate(error["loc"], error["type"]) for error in errors]
    renamed = {
        new
        for error, place in zip(errors, places, strict=True)
        if error["type"] == "extra_forbidden"
        for _, new in renamed_below(place.path, error["input"])
    }
    lines: dict[str, None] = {}  # a union reports an error for each of its members
    for error, place in zip(errors, places, strict=True):
        if error["type"] == "extra_forbidden":
            found = _unknown_key(error["input"], place)
        elif error["type"] == "missing" and not isinstance(error["loc"][-1], int):
            found = _missing(place, renamed)
        else:
            found = [_line(error, place)]
        lines.update(dict.fromkeys(found))
    return list(lines)


def _unknown_key(value: Any, place: _Place) -> list[str]:  # noqa: ANN401 - any YAML value
    renamed = renamed_below(place.path, value)
    if renamed:
        return [f"{old}: renamed to {new}" for old, new in renamed]
    section = place.section
    assert section is not None, "only a section has keys that are not allowed"
    of = f" of {section.noun} {place.choice!r}" if place.choice else ""
    keys = ", ".join(sorted(section.model_fields))
    hint = suggest_key(place.path, section, place.choice)
    return [f"{place.path}: unknown key{of}; allowed: {keys}{hint}"]


def _missing(place: _Place, renamed: set[str]) -> list[str]:
    """Return a line for a required key, or for every required key of a section."""
    if place.path in renamed:
        return []
    section = _section_of(place.of)
    if section is not None:
        inner = [
            _Place(f"{place.path}.{name}", section, "", Type.of_field(field))
            for name, field in section.model_fields.items()
            if field.is_required()
        ]
        return [line for each in inner for line in _missing(each, renamed)]
    words = "" if place.of is None else f"; allowed: {allowed(place.of)}"
    return [f"{place.path}: required and not given{words}"]


def _line(error: ErrorDetails, place: _Place) -> str:
    path, value = place.path or "config", error["input"]
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_choice(error, place)
    name = None if place.of is None else place.of.name_in
    if error["type"] == "value_error" and name is not None:
        return _wrong_name(path, value, name.registry.names())
    if error["type"] == "value_error":
        return _own_message(place.path, error["msg"].removeprefix("Value error, "))
    if error["type"] == "invalid_key":
        path = place.path.rpartition(".")[0] or "config"
    if place.is_key or error["type"] == "invalid_key":
        return f"{path}: found the key {in_yaml(value)}; allowed are texts, write it in quotes"
    found = shortened(in_yaml(value), _LONGEST)
    section = _section_of(place.of)
    if section is not None:
        keys = ", ".join(sorted(section.model_fields))
        return f"{path}: found {found}; allowed: a mapping with keys among {keys}"
    if place.of is None:
        return f"{path}: found {found}, which is not allowed"
    choices = alternatives(place.of.annotation)
    if choices:
        key = next(iter(choices.values())).discriminator
        hint = f"; write {{{key}: {value}}}" if isinstance(value, str) and value in choices else ""
        names = listed(tuple(choices))
        return f"{path}: found {found}; allowed: a mapping with the key {key}, one of {names}{hint}"
    return f"{path}: found {found}; allowed: {allowed(place.of)}{_hint(place.of, value)}"


def _own_message(path: str, message: str) -> str:
    """Return the line of a condition of this project, whose message may begin with a dotted key."""
    if message.startswith("."):  # a part of the value
        return f"{path}{message}"
    return message if not path or message.startswith(f"{path}.") else f"{path}: {message}"


def _hint(of: Type, value: Any) -> str:  # noqa: ANN401 - any YAML value
    """Return how a value would be right that only has another form."""
    if isinstance(value, str):
        names = [v for m in of.members if m.origin is Literal for v in m.arguments]
        if names:
            return did_you_mean(value, map(str, names))
    if isinstance(value, float) and not math.isfinite(value):
        return "; it must be finite"
    origins = {member.origin for member in of.members}
    if value is None or isinstance(value, (Mapping, list, tuple)):
        return ""
    if tuple in origins:
        element = of.element(1000)  # none where the length is fixed
        texts = element is not None and (element.takes(str) or element.takes(Path))
        nested = element is not None and element.origin is tuple
        fits = element is not None and not nested and texts == isinstance(value, str)
        return f"; a list is written [{value}]" if fits else ""
    if isinstance(value, bool) and origins & {str, Path}:
        return "; YAML reads yes, no, on and off as true and false unless they are in quotes"
    if not isinstance(value, str) and origins & {str, Path}:
        return f"; text is written in quotes: '{value}'"
    return ""


def _wrong_name(path: str, value: Any, names: Sequence[str]) -> str:  # noqa: ANN401
    found = shortened(in_yaml(value), _LONGEST)
    hint = did_you_mean(value, names) or (_OF_LIBRARIES if path == "model.encoder.name" else "")
    return f"{path}: found {found}; allowed: {listed(names)}{hint}"


def _unknown_choice(error: ErrorDetails, place: _Place) -> str:
    """Return the line for a union whose discriminator is unknown or missing."""
    assert place.of is not None, "a union is the value of a key"
    choices = alternatives(place.of.annotation)
    key = f"{place.path}.{next(iter(choices.values())).discriminator}"
    if error["type"] == "union_tag_not_found":
        return f"{key}: required and not given; allowed: {', '.join(choices)}"
    value = error["input"][key.rpartition(".")[2]]
    if place.path == "grouping" and isinstance(value, str) and value in RENAMED_RECIPES:
        return f"{key}: {value!r} is renamed to {RENAMED_RECIPES[value]!r}"
    return _wrong_name(key, value, tuple(choices))


def _section_of(of: Type | None) -> type[Section] | None:
    """Return the section whose keys a value must have; of a union none."""
    if of is None:
        return None
    keys = of.find(KeysOf)
    return section_type(of.annotation) if keys is None else keys.section


def _locate(loc: tuple[int | str, ...], error_type: str) -> _Place:
    """Return the place of an error; pydantic puts the choice of a union between the keys."""
    current: type[Section] | None = Config
    place = _Place("", None, "", Type.of(Config))
    choice = ""
    choices: dict[str, type[Section]] = {}
    for part in loc:
        if choices:
            if part not in choices:
                return place
            choice, current, choices = str(part), choices[str(part)], {}
            continue
        if part == "[key]":  # after the key itself
            return _Place(place.path.rpartition(".")[0], None, "", None, is_key=True)
        if current is not None:
            field = current.model_fields.get(str(part))
            of = None if field is None else Type.of_field(field)
        else:
            of = None if place.of is None else place.of.element(part)
            # A member of a union, or an element that a list lacks: the value as a whole is wrong.
            if of is None or error_type == "missing":
                return place
        path = f"{place.path}.{part}" if place.path else str(part)
        place = _Place(path, current, choice, of)
        choice, choices = "", {} if of is None else alternatives(of.annotation)
        current = None if choices else _section_of(of)
    return place
