"""Draws what a run learned: which task chose which branch, when heads fell, and the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from dmtg.files import atomic_path
from trainer.errors import UserError
from trainer.run_folder import RunFolder


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`.

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


def draw_report(run: Path, out: Path) -> None:
    """Write a picture of the grouping, the heads alive and the loss.

    Raises:
        UserError: The folder holds no run, or one that has not logged anything.
    """
    config = RunFolder(run).load_config()
    records = read_metrics(run)
    training = [record for record in records if record["kind"] == "train"]
    if not training:
        raise UserError(f"{run}: metrics.jsonl has no training record yet")
    names = list(training[0]["losses"])
    death = _deaths(records, len(names), config.model.branches)
    figure, (left, top, bottom) = plt.subplots(
        1, 3, figsize=(15, max(4.0, 0.28 * len(names))), width_ratios=(1.2, 1, 1)
    )
    _draw_grouping(left, names, death, training[-1]["step"])
    steps = [record["step"] for record in training]
    top.plot(steps, [record["heads"] for record in training], drawstyle="steps-post")
    top.set(title="heads alive", xlabel="step", ylim=(0, None))
    top.axhline(len(names), color="grey", linewidth=0.8, linestyle=":")
    bottom.plot(steps, [record["loss"] for record in training], linewidth=0.8)
    bottom.set(title="mean training loss", xlabel="step", yscale="log")
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    out = out if out.suffix else out.with_suffix(".png")  # as `savefig` names it
    with atomic_path(out, sync=False) as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)


def _deaths(records: list[dict[str, Any]], num_tasks: int, num_branches: int) -> np.ndarray:
    """The step at which each head [N,K] was switched off; infinity for those that live."""
    death = np.full((num_tasks, num_branches), np.inf)
    given = next((record["heads"] for record in records if record["kind"] == "given"), None)
    if given is not None:
        alive = np.zeros((num_tasks, 1 + max(branch for _, branch in given)))
        alive[tuple(zip(*given, strict=True))] = np.inf
        return alive
    columns = list(range(num_branches))  # branches that are left, by their first number
    for record in records:
        if record["kind"] == "prune":
            for task, branch in record["off"]:
                death[task, columns[branch]] = record["step"]
        if record["kind"] == "compact":
            columns = [columns[branch] for branch in record["branches"]]
    return death


def _draw_grouping(axis: Axes, names: list[str], death: np.ndarray, last: int) -> None:
    order = np.lexsort((np.arange(len(names)), death.argmax(axis=1)))
    lifetime = np.minimum(death[order], last) / last
    axis.imshow(lifetime, aspect="auto", cmap="Blues", vmin=0, vmax=1.1, interpolation="nearest")
    for row, task in enumerate(order):
        axis.text(
            int(death[task].argmax()), row, "●", ha="center", va="center", color="white", fontsize=8
        )
    axis.set_yticks(range(len(names)), [names[task] for task in order], fontsize=8)
    axis.set_xticks(range(death.shape[1]))
    axis.set(title="grouping (darker: lived longer, ●: chosen)", xlabel="branch")
