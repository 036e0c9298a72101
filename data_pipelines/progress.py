"""The progress bar of commands that read or write data."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_TERMINAL_SECONDS, _LOG_SECONDS = 0.1, 30.0  # between two updates


def progress_bar(total: int, progress: bool, unit: str = " images") -> tqdm[Any]:
    """Return a progress bar on standard error; in a log it is written every half minute.

    Args:
        total: What is to be done; 0 if that is unknown.
        progress: Whether anything is shown.
        unit: What is counted.
    """
    seconds = _TERMINAL_SECONDS if sys.stderr.isatty() else _LOG_SECONDS
    return tqdm(
        total=total or None,
        disable=not progress,
        unit=unit,
        mininterval=seconds,
        maxinterval=max(seconds, 10.0),
    )


def counted(items: Iterable[Item], bar: tqdm[Any]) -> Iterator[Item]:
    """Yield the items, and count each on a progress bar when the next one is asked for."""
    for item in items:
        yield item
        bar.update()
