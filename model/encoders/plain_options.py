"""The check that encoder options are plain data of a bounded size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmtg.names import shortened

MAX_VALUES = 10_000  # in all options of an encoder together
MAX_TEXT = 1_000  # characters of a text
MAX_DEPTH = 6  # of lists and mappings inside each other
MAX_NUMBER = 1e15  # either way from zero


def check_plain_options(
    options: Mapping[str, Any], name_of_all: str = "model.encoder.options"
) -> None:
    """Check that options hold only what JSON can hold, and not too much of it.

    Args:
        options: By name.
        name_of_all: Dotted path of the options, for the message.

    Raises:
        ValueError: A value is something else, a text or a number is too large, or there are too
            many values; the message has the dotted path of the option and its value.
    """
    if not isinstance(options, Mapping):
        raise ValueError(f"{name_of_all} is {shortened(repr(options))}, must be a mapping")
    remaining = [(f"{name_of_all}.{name}", value, 1) for name, value in options.items()]
    seen = 0
    while remaining:
        place, value, depth = remaining.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise ValueError(f"{name_of_all} holds more than {MAX_VALUES} values")
        if isinstance(value, (Mapping, list, tuple)):
            if depth >= MAX_DEPTH:
                raise ValueError(f"{place} is nested deeper than {MAX_DEPTH} levels")
            if len(value) > MAX_VALUES:
                raise ValueError(f"{place} holds {len(value)} values, allowed are {MAX_VALUES}")
            named = (
                [(f".{key}", part) for key, part in value.items()]
                if isinstance(value, Mapping)
                else [(f"[{index}]", part) for index, part in enumerate(value)]
            )
            remaining += [(f"{place}{name}", part, depth + 1) for name, part in named]
        else:
            _check_value(place, value)


def _check_value(place: str, value: object) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, (int, float)):
        if not abs(value) <= MAX_NUMBER:
            found = shortened(repr(value))
            raise ValueError(f"{place} is {found}, must be a number of at most {MAX_NUMBER:g}")
    elif not isinstance(value, str):
        raise ValueError(
            f"{place} is {shortened(repr(value))}, must be text, a number, true, false, null, or "
            "lists and mappings of these"
        )
    elif len(value) > MAX_TEXT:
        raise ValueError(f"{place} is {shortened(value)!r}, must have at most {MAX_TEXT} letters")
