"""The entries of the reference: for every key what it allows, its default and one sentence."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from dmtg.plugins import ENCODERS, RECIPES
from trainer.config.allowed import KeysOf, allowed, either, in_yaml
from trainer.config.keys import Key, all_keys
from trainer.config.section import Section
from trainer.config.unions import CHOICES, from_registry

OPTIONS = "model.encoder.options"
_KEYS_BELOW = "a mapping with the keys below"


@dataclass(frozen=True)
class Entry:
    """A key of the configuration, or an option of an encoder.

    Attributes:
        path: Dotted path, with `TASK` or `KIND` for the name of one.
        of: Which recipe, schedule or encoder has it, such as `recipe affinity`; empty for the keys
            that every configuration has.
        allowed: What values it may have, in words.
        default: The value where it is left out, as YAML has it; `required` or empty without one.
        meaning: One sentence.
        is_section: Whether it holds keys, not a value.
    """

    path: str
    of: str
    allowed: str
    default: str
    meaning: str
    is_section: bool = False


def entries() -> Iterator[Entry]:
    """Yield all entries in the order of the configuration, a section before its keys."""
    for key in all_keys():
        if key.union is not None and key.path == _chooses(key.union):
            if key.choice == CHOICES[key.union.path][1]:  # once for all alternatives
                yield _discriminator(key, key.union)
            continue
        yield _entry(key)
        element = key.of.element("")
        keys_of = None if element is None else element.find(KeysOf)
        if keys_of is not None:
            path = f"{key.path}.{keys_of.placeholder}"
            yield Entry(path, "", _KEYS_BELOW, "", _first_line(keys_of.section), True)
        if key.path == OPTIONS:
            yield from _options()


def unions() -> Iterator[tuple[Key, str]]:
    """Yield the keys that are unions of sections, with what an alternative is called."""
    for key in all_keys():
        if key.alternatives:
            yield key, _noun(key)


def describe_alternative(union: Key, name: str) -> str:
    """Return what an alternative of a union does, such as a recipe, in one sentence."""
    if union.path == "grouping":
        recipe = RECIPES[name]
        module = _first_line(sys.modules[recipe.__module__])
        start, colon, text = module.partition(": ")
        described = text if colon and start.startswith(f"The recipe `{name}`") else ""
        described = described or _first_line(recipe)
        return described[:1].upper() + described[1:]
    return _first_line(union.alternatives[name])


def describe_encoder(name: str) -> str:
    """Return what an encoder is, in one sentence."""
    return _first_line(ENCODERS[name])


def default_of(field: FieldInfo) -> Any:  # noqa: ANN401 - any JSON value
    """Return the default of a key that has one, as JSON has it; a section's is its choice."""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return getattr(value, value.discriminator, {})
    return to_jsonable_python(value)


def _entry(key: Key) -> Entry:
    default, words = "", allowed(key.of)
    if key.section is None:
        default = "required" if key.field.is_required() else _as_text(default_of(key.field))
    else:
        words = _KEYS_BELOW
    if key.alternatives:
        words = f"a mapping with the keys of a {_noun(key)}: {', '.join(key.alternatives)}"
    meaning = " ".join((key.field.description or "").split())
    if key.section is not None:
        meaning = meaning or _first_line(key.section)
    of = "" if key.union is None else f"{_noun(key.union)} {key.choice}"
    is_section = key.section is not None or bool(key.alternatives)
    return Entry(key.path, of, words, default, meaning, is_section)


def _noun(union: Key) -> str:
    return next(iter(union.alternatives.values())).noun or "choice"


def _chooses(union: Key) -> str:
    """Return the dotted key that chooses an alternative."""
    return f"{union.path}.{CHOICES[union.path][0]}"


def _discriminator(key: Key, union: Key) -> Entry:
    default = key.choice if from_registry(union.of.annotation) else "required"
    names = tuple(union.alternatives)
    return Entry(key.path, "", either(names), default, key.field.description or "")


def _options() -> Iterator[Entry]:
    for name in ENCODERS.names():
        for option, (words, default, meaning) in ENCODERS[name].documented_options.items():
            text = "" if default is None else _as_text(default)
            yield Entry(f"{OPTIONS}.{option}", f"encoder {name}", words, text, meaning)


def _as_text(value: Any) -> str:  # noqa: ANN401 - any JSON value
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_text, value)) + "]"
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return value if isinstance(value, str) and value else in_yaml(value)


def _first_line(documented: Any) -> str:  # noqa: ANN401 - a class, function or module
    return (inspect.getdoc(documented) or "").partition("\n")[0]
