"""The names that are allowed, for messages about one that is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_MAX_NAMES = 40  # in a message


def closest(name: str, allowed: Iterable[str], similarity: float = 0.6) -> str | None:
    """Return the allowed name that is most like `name`, whatever its case; None if none is.

    Args:
        similarity: Of difflib, 1 for equal names; with less a suggestion would be a guess.
    """
    by_lower = {each.lower(): each for each in allowed}
    matches = get_close_matches(name.lower(), by_lower, n=1, cutoff=similarity)
    return by_lower[matches[0]] if matches else None


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """Return the end of a message, `; did you mean 'x'?`; nothing if no allowed name is close."""
    match = closest(name, allowed) if isinstance(name, str) else None
    return "" if match is None else f"; did you mean {match!r}?"


def listed(names: Sequence[str]) -> str:
    """Return names separated by commas; of very many the first."""
    shown = ", ".join(names[:_MAX_NAMES])
    more = len(names) - _MAX_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
