"""The text by which a value of a record or a table is looked up."""

from __future__ import annotations

import math
import re

_MAX_WHOLE = 2**53  # up to which a float has no gaps between integers
_WHOLE = re.compile(r"([+-]?)0*(\d{1,30})(?:\.0*)?", re.ASCII)


def value_text(value: object) -> str | None:
    """Return the text of a value; None where it stands for no value.

    Whole floats have the text of their integer, so 1.0 and 1 have one text, and so have True and
    the text `true`. None, NaN and blank texts stand for no value.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if abs(value) <= _MAX_WHOLE and value == int(value):
            return str(int(value))
    return str(value)


def whole_number(text: str) -> str | None:
    """Return the text of the integer that a text such as `1.0` or `007` is; None for others."""
    match = _WHOLE.fullmatch(text)
    return str(int(match[1] + match[2])) if match else None
