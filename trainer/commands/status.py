"""The command `dmtg status`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.commands.output import AsJson, echo, print_json, wrapped


def status(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")], as_json: AsJson = False
) -> None:
    """Print what a run is doing; exit with 1 if it has failed or no process runs it any more."""
    from trainer.monitoring.status import read_status

    values = read_status(run)
    if as_json:
        print_json(values)
    else:
        for line in describe(values):
            echo(wrapped(line))
    if values["state"] == "failed" or values["stale"] is not None:
        raise typer.Exit(1)


def describe(status: dict[str, Any]) -> list[str]:
    """Return a status of `read_status` as lines of text; unknown values are left out."""
    lines = [f"{status['state']}: {_position(status)}"]
    if status["stale"] is not None:
        lines[0] += f" (stale: {status['stale']})"
    if status["error"] is not None:
        lines.append(f"error: {status['error']}")
    if status.get("cause") is not None:
        lines.append(f"stopped by: {status['cause']}")
    if "loss" in status:
        lines.append(
            f"loss: {_number(status['loss'])}, {status['heads']} heads on "
            f"{status['branches']} branches"
        )
    if "samples_per_second" in status:
        lines.append(_speed(status))
    slowest = status.get("slowest")
    if slowest is not None:
        lines.append(
            f"slowest: rank {slowest['rank']} on {slowest['host']}, {slowest['own_seconds']:.3g} s "
            f"a step of its own, others {slowest['others_own_seconds']:.3g} s"
        )
    if "grouping" in status:
        lines += _groups(status["grouping"])
    lines.append(f"checkpoint: {status['checkpoint'] or 'none yet'}")
    job = "" if status["job"] is None else f", job {status['job']}"
    lines.append(f"process: {status['pid']} on {status['host']}{job}")
    lines.append(f"updated: {status['updated']}, {status['age_seconds']:.0f} s ago")
    return lines


def _groups(grouping: dict[str, Any]) -> list[str]:
    """Return the groups with some tasks of each; `dmtg groups` shows all."""
    from trainer.results.groups import RunGroups
    from trainer.results.text import SHOWN_TASKS, describe_groups

    try:
        groups = RunGroups.from_json(grouping)
    except (ValueError, TypeError, KeyError, AttributeError):
        return []
    return describe_groups(groups, SHOWN_TASKS) if groups.tasks else []


def _position(status: dict[str, Any]) -> str:
    if "step" not in status:
        return "no step yet"
    text = f"step {status['step']} of {status['num_steps']}"
    if "epoch" in status:
        text += f", epoch {status['epoch']:.2f}"
    if status.get("eta_seconds") is not None and status["state"] in ("running", "evaluating"):
        text += f", {timedelta(seconds=round(status['eta_seconds']))} left"
    return text


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _speed(status: dict[str, Any]) -> str:
    text = (
        f"speed: {status['samples_per_second']:.4g} samples/s, "
        f"{status['step_seconds']:.3g} s a step, "
        f"{status['data_seconds']['max']:.3g} s waiting for data"
    )
    if status["share_of_peak"] is not None:
        text += f", {100 * status['share_of_peak']:.1f}% of peak"
    return text
