"""Write JSON files atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dmtg.files import atomic_write


def write_json(path: Path, content: Any, indent: int | None = None) -> None:  # noqa: ANN401
    """Write JSON to a file atomically and sync it to disk.

    Raises:
        ValueError: A number is not finite, which JSON cannot hold.
    """
    with atomic_write(path) as file:
        json.dump(content, file, indent=indent, allow_nan=False)
