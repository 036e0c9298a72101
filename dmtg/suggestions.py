"""The closest of the names that are allowed, for messages about one that is not."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_SIMILARITY = 0.6  # of difflib: 1 for equal names; below it a suggestion would be a guess


def closest(name: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name that is most like `name`, whatever its case; None if none is."""
    by_lower = {each.lower(): each for each in allowed}
    matches = get_close_matches(name.lower(), by_lower, n=1, cutoff=_SIMILARITY)
    return by_lower[matches[0]] if matches else None


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """Return the end of a message, `; did you mean 'x'?`; nothing if no allowed name is close."""
    match = closest(name, allowed) if isinstance(name, str) else None
    return "" if match is None else f"; did you mean {match!r}?"
