"""Plot a run: the branch of each task, the steps at which heads were switched off, the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter, MaxNLocator, StrMethodFormatter

from trainer.errors import UserError
from trainer.figures import figure_file
from trainer.json_file import to_number
from trainer.report.history import switched_off_steps
from trainer.report.records import read_metrics
from trainer.run_folder import RunFolder

_LABELLED_TASKS = 120  # more rows have no names: nobody could read them
_MOST_INCHES = 12.0  # height of a picture without names


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
    switched_off = switched_off_steps(records, len(names), config.model.branches)
    out.parent.mkdir(parents=True, exist_ok=True)
    out = out if out.suffix else out.with_suffix(".png")  # the default of `savefig`
    labelled = len(names) <= _LABELLED_TASKS
    size = (15.0, max(4.0, 0.28 * len(names)) if labelled else _MOST_INCHES)
    with figure_file(out, 1, 3, size=size, width_ratios=(1.2, 1, 1)) as axes:
        left, middle, right = axes[0]
        _draw_grouping(left, names, switched_off, training[-1]["step"], labelled=labelled)
        steps = [record["step"] for record in training]
        middle.plot(steps, [record["heads"] for record in training], drawstyle="steps-post")
        middle.axhline(
            len(names), color="grey", linewidth=0.8, linestyle=":", label="one for each task"
        )
        middle.set(title="heads alive", xlabel="step", ylabel="heads", ylim=(0, None))
        middle.legend(frameon=False)
        right.plot(steps, [to_number(record["loss"]) for record in training], linewidth=0.8)
        right.set(title="mean training loss", xlabel="step", ylabel="loss (log scale)")
        right.set_yscale("log")
        # The default formatters write math markup, which figures do not parse.
        right.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        right.yaxis.set_minor_formatter(_MinorLabels())


class _MinorLabels(LogFormatter):
    """Labels of the ticks between powers of ten, where there are few of them."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _draw_grouping(
    axis: Axes, names: list[str], switched_off: np.ndarray, last: int, *, labelled: bool
) -> None:
    order = np.lexsort((np.arange(len(names)), switched_off.argmax(axis=1)))
    lifetime = np.minimum(switched_off[order], last) / last
    axis.imshow(lifetime, aspect="auto", cmap="Blues", vmin=0, vmax=1.1, interpolation="nearest")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not labelled:
        axis.set(title="grouping (darker: lived longer)", xlabel="branch", ylabel="task, by branch")
        return
    style: dict[str, Any] = {"ha": "center", "va": "center", "color": "white", "fontsize": 8}
    for row, task in enumerate(order):
        axis.text(int(switched_off[task].argmax()), row, "●", **style)
    axis.set_yticks(range(len(names)), [names[task] for task in order], fontsize=8)
    axis.set(title="grouping (darker: lived longer, ●: chosen)", xlabel="branch")
