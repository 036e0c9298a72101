"""Read and write the metrics of a reference model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmtg.files import atomic_write
from trainer.errors import UserError
from trainer.json_file import to_json

_FORM = '{"task": {"metric": number, ...}, ...}'


def write_reference(path: Path, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Write metrics by task and name to a JSON file atomically, without those that are not finite.

    Raises:
        UserError: The file cannot be written.
    """
    finite = {
        task: {name: value for name, value in values.items() if math.isfinite(value)}
        for task, values in metrics.items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(to_json(finite, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def read_reference(path: Path) -> dict[str, dict[str, float]]:
    """Return the metrics of a file in the format of `write_reference`.

    Raises:
        UserError: The file cannot be read or has another format.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, must hold {_FORM}")
    for task, values in content.items():
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise UserError(f"{path}: task {task!r} is a {kind}, the file must hold {_FORM}")
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UserError(f"{path}: {name!r} of task {task!r} is {value!r}, must be a number")
    return content
