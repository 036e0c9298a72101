"""JSON as this program writes it: a number that is not finite, which JSON cannot hold, is null."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dmtg.files import atomic_write


def to_json(content: Any, indent: int | None = None) -> str:  # noqa: ANN401
    """Return JSON text, in which NaN and infinite numbers are null.

    Args:
        content: Anything that JSON can hold.
        indent: See `json.dumps`; None writes one line.
    """
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:  # noqa: ANN401
    """Write `to_json` of a value to a file atomically and sync it to disk."""
    with atomic_write(path) as file:
        file.write(to_json(content, indent))


def with_digits(value: Any, digits: int) -> Any:  # noqa: ANN401 - anything that JSON can hold
    """Return a value whose floats are rounded to so many digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: with_digits(part, digits) for key, part in value.items()}
    return [with_digits(part, digits) for part in value] if isinstance(value, list) else value


def to_number(value: float | None) -> float:
    """Return a number that was read from JSON; NaN where `to_json` wrote null."""
    return math.nan if value is None else value


def _finite(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value
