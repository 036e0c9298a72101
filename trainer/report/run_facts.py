"""Everything that the page shows of one run, as JSON values.

Legend: T records, N tasks, K branches.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmtg.names import printable
from dmtg.secrets import without_secrets
from model.metrics import metric_for
from model.tasks.spec import TaskSpec
from trainer.checkpoints.checkpoint import load_checkpoint, newest_checkpoint
from trainer.config.config import Config
from trainer.errors import UserError
from trainer.json_file import to_number
from trainer.monitoring.grouping_file import read_grouping_file
from trainer.monitoring.status import read_status
from trainer.report.affinities import block_order, read_affinities, read_co_assignment
from trainer.report.data_facts import DataFacts, read_data_facts
from trainer.report.evidence import describe_evidence
from trainer.report.history import History, given_heads, read_history, switched_off_steps, thinned
from trainer.report.problems import list_problems
from trainer.report.records import Record, of_kind, read_constants, read_metrics, read_timing
from trainer.run_folder import RunFolder
from trainer.scoring.summary import relative_change

_SCALARS = ("loss", "heads", "branches", "temperature", "lr")  # of a training record
_SPEED = ("samples_per_second", "step_seconds", "share_of_peak")
_MAXIMA = ("data_seconds", "process_gib", "device_gib")
_SCALAR_POINTS = 500  # of a curve of the whole run
_TWENTIETHS = 20  # steps of a probability that is written as a letter
_DIGITS = 5  # significant ones of a number in the page


@dataclass(frozen=True)
class Budget:
    """How many values a run may take in the page, which has a bounded size.

    Attributes:
        probabilities: Of its history.
        curve_values: Of the losses and metrics of all tasks.
        affinities: Of its heat map.
        picture_bytes: Of its sample predictions.
    """

    probabilities: int
    curve_values: int
    affinities: int
    picture_bytes: int


@dataclass(frozen=True)
class RunFacts:
    """A run as it is read from its folder.

    Attributes:
        name: Shown name, unique in the page.
        config: Its configuration.
        tasks: The N tasks.
        groups: For each task the branch that it is on, by its initial number.
        metrics: Of the last evaluation, by task and name; empty before the first one.
        page: The JSON values for the page.
    """

    name: str
    config: Config
    tasks: tuple[TaskSpec, ...]
    groups: list[int]
    metrics: dict[str, dict[str, float]]
    page: dict[str, Any]


def read_run(run: Path, name: str, budget: Budget, *, use_data: bool, progress: bool) -> RunFacts:
    """Read a run.

    Args:
        run: Its folder.
        name: How the page calls it.
        budget: Bounds of what the page takes.
        use_data: Whether to read the run's data, for constants and sample predictions.
        progress: Whether to show progress bars.

    Raises:
        UserError: The folder holds no run, no training record or no checkpoint.
    """
    folder = RunFolder(run)
    config, records = folder.load_config(), read_metrics(run)
    training = of_kind(records, "train")
    if not training:
        raise UserError(f"{run}: metrics.jsonl has no training record yet")
    newest = newest_checkpoint(folder.checkpoints)
    if newest is None:
        raise UserError(f"{run}: no whole checkpoint in {folder.checkpoints} yet")
    checkpoint = load_checkpoint(newest)
    tasks = tuple(TaskSpec.from_dict(t) for t in checkpoint.progress.network["tasks"])
    names = [task.name for task in tasks]
    grouping_records = read_grouping_file(folder.grouping)
    switched_off = switched_off_steps(records, len(tasks), config.model.branches)
    most = max(2, budget.probabilities // switched_off.size)
    history = read_history(records, grouping_records, switched_off, most)
    groups = history.probabilities[-1].argmax(axis=1).tolist()
    evaluations = of_kind(records, "eval")
    metrics = _numbers(evaluations[-1]["metrics"]) if evaluations else {}
    constants = read_constants(run, evaluations[-1]["step"]) if evaluations else {}
    missing = "The data of this run were not read (--no-data)."
    facts = DataFacts(missing=missing, constants=constants)
    if use_data:
        facts = read_data_facts(
            config,
            checkpoint,
            constants,
            max_picture_bytes=budget.picture_bytes,
            progress=progress,
        )
    timing = read_timing(run)
    page = {
        "name": name,
        "folder": str(run),
        "recipe": config.grouping.recipe,
        "seed": config.run.seed,
        "dataset": without_secrets(checkpoint.progress.dataset),
        **_state(run, training, timing),
        "branches": switched_off.shape[1],
        "chosen": groups,
        "history": None if given_heads(records) is not None else _history(history),
        "affinity": _affinity(run, grouping_records, names, groups, budget),
        "evidence": describe_evidence(run, names),
        "curves": _curves(training, evaluations, tasks, budget),
        "metrics": [_rounded_values(metrics.get(name, {})) for name in names],
        "constants": [_primary(task, facts.constants) for task in tasks],
        "change_constant": describe_change(tasks, metrics, facts.constants),
        "speed": _speed(timing),
        "problems": list_problems(records, timing, tasks, metrics, facts),
        "no_data": facts.missing,
        "samples": facts.samples,
        "config": printable(config.to_yaml()),
    }
    return RunFacts(name, config, tasks, groups, metrics, page)


def describe_tasks(tasks: Sequence[TaskSpec]) -> list[dict[str, Any]]:
    """Return what the page shows of the tasks themselves."""
    described = []
    for task in tasks:
        metric = metric_for(task)
        described.append(
            {
                "name": task.name,
                "kind": task.kind,
                "loss": task.loss,
                "unit": task.unit,
                "metric": metric.primary,
                "higher": metric.higher_is_better,
            }
        )
    return described


def describe_change(
    tasks: Sequence[TaskSpec],
    metrics: Mapping[str, Mapping[str, float]],
    reference: Mapping[str, Mapping[str, float]],
) -> dict[str, Any] | None:
    """Return the mean relative change against a reference, None if there is none."""
    change = relative_change(tasks, metrics, reference)
    if not change.by_task:
        return None
    return {
        "mean": rounded(change.mean),
        "tasks": len(change.by_task),
        "better": sum(value > 0 for value in change.by_task.values()),
    }


def _state(run: Path, training: list[Record], timing: list[Record]) -> dict[str, Any]:
    """Return the state of the run as far as its files tell."""
    try:
        status = read_status(run)
    except UserError:
        status = {}
    starts = [record for record in timing if record.get("kind") == "start"]
    return {
        "state": status.get("state", "unknown"),
        "error": status.get("error"),
        "step": training[-1]["step"],
        "steps": status.get("num_steps") or training[-1]["step"],
        "hours": max((record.get("hours", 0.0) for record in timing), default=None),
        "starts": len(starts),
        "processes": len(starts[-1]["hosts"]) if starts else None,
    }


def _history(history: History) -> dict[str, Any]:
    return {
        "steps": history.steps,
        "recorded": history.recorded,
        "values": packed(history.probabilities, 100),
    }


def packed(values: NDArray[np.float64], levels: int) -> str:
    """Return values from 0 to 1 as bytes from 0 to `levels`, in base64."""
    scaled = (levels * values.clip(0.0, 1.0)).round().astype(np.uint8)
    return base64.b64encode(scaled.tobytes()).decode()


def letters(values: NDArray[np.float64]) -> str:
    """Return values from 0 to 1 as letters from A to U, twentieths, which take less than bytes."""
    scaled = (_TWENTIETHS * values.clip(0.0, 1.0)).round().astype(np.uint8)
    return (scaled + ord("A")).tobytes().decode()


def _affinity(
    run: Path,
    grouping_records: list[Record],
    names: list[str],
    groups: list[int],
    budget: Budget,
) -> dict[str, Any]:
    """Return the heat maps: their lower triangles with the diagonal, in the order of the rows."""
    try:
        affinities = read_affinities(run, grouping_records, names)
    except ValueError as error:
        return {"missing": str(error)}
    lower = np.tril_indices(len(names))
    if len(lower[0]) > budget.affinities:
        return {"missing": "Left out of this page, which has several runs with many tasks."}
    order = block_order(affinities.values, groups)
    ordered = affinities.values[np.ix_(order, order)]
    away = ordered[np.tril_indices(len(names), -1)]
    low, high = (float(away.min()), float(away.max())) if len(away) else (0.0, 1.0)
    scaled = (ordered - low) / max(high - low, 1e-12)
    together = read_co_assignment(grouping_records, len(names))
    if together is not None:
        together = together[np.ix_(order, order)][lower]
    return {
        "order": order,
        "low": rounded(low),
        "high": rounded(high),
        "meaning": affinities.meaning,
        "values": packed(scaled[lower], 255),
        "together": None if together is None else letters(together),
    }


def _curves(
    training: list[Record],
    evaluations: list[Record],
    tasks: Sequence[TaskSpec],
    budget: Budget,
) -> dict[str, Any]:
    rows = [training[i] for i in thinned(len(training), _SCALAR_POINTS)]
    points = max(8, budget.curve_values // (2 * len(tasks)))
    losses = [training[i] for i in thinned(len(training), points)]
    evals = [evaluations[i] for i in thinned(len(evaluations), points)] if evaluations else []
    return {
        "steps": [record["step"] for record in rows],
        **{name: [rounded(record.get(name)) for record in rows] for name in _SCALARS},
        "loss_steps": [record["step"] for record in losses],
        "losses": [[rounded(r["losses"].get(task.name)) for r in losses] for task in tasks],
        "metric_steps": [record["step"] for record in evals],
        "metric_values": [[_primary(task, r["metrics"]) for r in evals] for task in tasks],
    }


def _primary(task: TaskSpec, metrics: Mapping[str, Mapping[str, float]]) -> float | None:
    return rounded(metrics.get(task.name, {}).get(metric_for(task).primary))


def _speed(timing: list[Record]) -> dict[str, Any]:
    records = of_kind(timing, "steps")
    rows = [records[i] for i in thinned(len(records), _SCALAR_POINTS)] if records else []
    return {
        "steps": [record["step"] for record in rows],
        **{name: [rounded(record.get(name)) for record in rows] for name in _SPEED},
        **{name: [rounded((r.get(name) or {}).get("max")) for r in rows] for name in _MAXIMA},
    }


def rounded(value: float | None) -> float | None:
    """Return a number with a few significant digits; None where there is none."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")


def _rounded_values(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: rounded(value) for name, value in values.items()}


def _numbers(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    return {task: {n: to_number(v) for n, v in values.items()} for task, values in metrics.items()}
