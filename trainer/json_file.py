"""JSON files that appear under their names only when they are complete."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any, indent: int | None = None) -> None:  # noqa: ANN401
    """Write anything that JSON can hold, on the disk when this returns."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=indent, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
