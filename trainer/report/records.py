"""Read the files that a run has written: `metrics.jsonl` and `timing.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.json_file import to_number
from trainer.run_folder import RunFolder

Record = dict[str, Any]


def read_metrics(run: Path) -> list[Record]:
    """Return the records of a run's `metrics.jsonl`.

    Raises:
        UserError: There is no such file, or a line of it is not JSON.
    """
    path = RunFolder(run).metrics
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def read_timing(run: Path) -> list[Record]:
    """Return the records of a run's `timing.jsonl`, without damaged lines; empty without one."""
    try:
        lines = (run / "timing.jsonl").read_bytes().splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def read_constants(run: Path, step: int) -> dict[str, dict[str, float]]:
    """Return the metrics of the constant predictions that a run has kept in `result.json`.

    Args:
        run: Its folder.
        step: Of the evaluation that they belong to.

    Returns:
        Metrics by task and name; empty if there are none of this step.
    """
    try:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        if result["step"] != step:
            return {}
        constants = result["constants"].items()
        return {task: {n: to_number(v) for n, v in values.items()} for task, values in constants}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def expand_comparisons(folders: Sequence[Path]) -> list[Path]:
    """Return the folders, each one of a comparison replaced by those of its finished runs.

    Raises:
        UserError: A comparison has no finished run.
    """
    runs: list[Path] = []
    for folder in folders:
        cells = sorted(folder.glob("*/*/cell.json"))
        if RunFolder(folder).config.is_file() or not cells:
            runs.append(folder)
            continue
        done = [cell.parent for cell in cells if _is_done(cell)]
        if not done:
            raise UserError(f"{folder}: is a comparison without a finished run")
        runs += done
    return runs


def _is_done(cell: Path) -> bool:
    try:
        return bool(json.loads(cell.read_text())["status"] == "done")
    except (OSError, ValueError, TypeError, KeyError):
        return False


def of_kind(records: list[Record], kind: str) -> list[Record]:
    """Return the records of one kind, the last one of each step, in the order of the steps."""
    by_step = {record["step"]: record for record in records if record.get("kind") == kind}
    return [by_step[step] for step in sorted(by_step)]
