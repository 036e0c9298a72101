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
from trainer.config.optim import OptimSection
from trainer.config.section import Section
from trainer.config.unions import CHOICES, alternatives

OPTIONS = "model.encoder.options"
_KEYS_BELOW = "a mapping with the keys below"
_SCHEDULES = tuple(alternatives(OptimSection.model_fields["schedule"].annotation))


@dataclass(frozen=True)
class Entry:
    """A key of the configuration, or an option of an encoder.

    Attributes:
        path: Dotted path, with `TASK` for the name of a task.
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
        choosing, default = CHOICES.get(key.union, ("", ""))
        if choosing and key.path == f"{key.union}.{choosing}":  # once for all alternatives
            if key.choice == default:
                yield _discriminator(key)
            continue
        yield _entry(key)
        element = key.of.element("")
        keys_of = None if element is None else element.find(KeysOf)
        if keys_of is not None:
            yield Entry(f"{key.path}.TASK", "", _KEYS_BELOW, "", _first_line(keys_of.section), True)
        if key.path == OPTIONS:
            yield from _options()


def describe_recipe(name: str) -> str:
    """Return what a recipe does, in one sentence."""
    recipe = RECIPES[name]
    module = _first_line(sys.modules[recipe.__module__])
    start, colon, text = module.partition(": ")
    text = text if colon and start.startswith(f"The recipe `{name}`") else _first_line(recipe)
    return text[:1].upper() + text[1:]


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
    choices = alternatives(key.of.annotation)
    is_section = key.section is not None or bool(choices)
    default = ""
    if key.section is None:
        default = "required" if key.field.is_required() else _as_text(default_of(key.field))
    words = allowed(key.of)
    if choices:
        noun = next(iter(choices.values())).noun
        words = f"a mapping with the keys of a {noun}: {', '.join(choices)}"
    elif is_section:
        words = _KEYS_BELOW
    meaning = " ".join((key.field.description or "").split())
    if key.section is not None:
        meaning = meaning or _first_line(key.section)
    return Entry(key.path, _owner(key), words, default, meaning, is_section)


def _discriminator(key: Key) -> Entry:
    names = RECIPES.names() if key.union == "grouping" else _SCHEDULES
    default = key.choice if key.union == "grouping" else "required"
    return Entry(key.path, "", either(names), default, key.field.description or "")


def _owner(key: Key) -> str:
    if not key.choice:
        return ""
    noun = "recipe" if key.union == "grouping" else "schedule"
    return f"{noun} {key.choice}"


def _options() -> Iterator[Entry]:
    for name in ENCODERS.names():
        for option, (words, default, meaning) in ENCODERS[name].documented_options.items():
            text = "" if default is None else _as_text(default)
            yield Entry(f"{OPTIONS}.{option}", f"encoder {name}", words, text, meaning)


def _as_text(value: Any) -> str:  # noqa: ANN401 - any JSON value
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_text, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) and value else in_yaml(value)


def _first_line(documented: Any) -> str:  # noqa: ANN401 - a class or function
    return (inspect.getdoc(documented) or "").partition("\n")[0]
