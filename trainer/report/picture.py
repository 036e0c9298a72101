"""Plot a run: the branch of each task, the steps at which heads were switched off, the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from trainer.errors import UserError
from trainer.figures import figure_file
from trainer.json_file import to_number
from trainer.run_folder import RunFolder


def read_metrics(run: Path) -> list[dict[str, Any]]:
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


def draw_report(run: Path, out: Path) -> None:
    """Write a plot of the grouping, the number of live heads and the loss.

    Args:
        run: Run folder.
        out: Image file; without a suffix it becomes a PNG file.

    Raises:
        UserError: The folder holds no run, or a run without training records.
    """
    config = RunFolder(run).load_config()
    records = read_metrics(run)
    training = [record for record in records if record["kind"] == "train"]
    if not training:
        raise UserError(f"{run}: metrics.jsonl has no training record yet")
    names = list(training[0]["losses"])
    switched_off = _deaths(records, len(names), config.model.branches)
    out.parent.mkdir(parents=True, exist_ok=True)
    out = out if out.suffix else out.with_suffix(".png")  # the default of `savefig`
    size = (15.0, max(4.0, 0.28 * len(names)))
    with figure_file(out, 1, 3, size=size, width_ratios=(1.2, 1, 1)) as axes:
        left, middle, right = axes[0]
        _draw_grouping(left, names, switched_off, training[-1]["step"])
        steps = [record["step"] for record in training]
        middle.plot(steps, [record["heads"] for record in training], drawstyle="steps-post")
        middle.set(title="heads alive", xlabel="step", ylim=(0, None))
        middle.axhline(len(names), color="grey", linewidth=0.8, linestyle=":")
        right.plot(steps, [to_number(record["loss"]) for record in training], linewidth=0.8)
        right.set(title="mean training loss", xlabel="step", yscale="log")
        right.yaxis.set_major_formatter(LogFormatter())  # the default one writes math markup
        right.yaxis.set_minor_formatter(LogFormatter())


def _deaths(records: list[dict[str, Any]], num_tasks: int, num_branches: int) -> np.ndarray:
    """Return the step at which each head [N,K] was switched off; infinity for live heads."""
    switched_off = np.full((num_tasks, num_branches), np.inf)
    given = next((record["heads"] for record in records if record["kind"] == "given"), None)
    if given is not None:
        switched_off = np.zeros((num_tasks, 1 + max(branch for _, branch in given)))
        switched_off[tuple(zip(*given, strict=True))] = np.inf
        return switched_off
    columns = list(range(num_branches))  # initial numbers of the branches that are not empty
    for record in records:
        if record["kind"] == "prune":
            for task, branch in record["off"]:
                switched_off[task, columns[branch]] = record["step"]
        if record["kind"] == "compact":
            columns = [columns[branch] for branch in record["branches"]]
    return switched_off


def _draw_grouping(axis: Axes, names: list[str], switched_off: np.ndarray, last: int) -> None:
    order = np.lexsort((np.arange(len(names)), switched_off.argmax(axis=1)))
    lifetime = np.minimum(switched_off[order], last) / last
    axis.imshow(lifetime, aspect="auto", cmap="Blues", vmin=0, vmax=1.1, interpolation="nearest")
    for row, task in enumerate(order):
        axis.text(
            int(switched_off[task].argmax()),
            row,
            "●",
            ha="center",
            va="center",
            color="white",
            fontsize=8,
        )
    axis.set_yticks(range(len(names)), [names[task] for task in order], fontsize=8)
    axis.set_xticks(range(switched_off.shape[1]))
    axis.set(title="grouping (darker: lived longer, ●: chosen)", xlabel="branch")
