"""Print the doctor's report as a table with one line per task."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer.doctor.examine import Report, TaskReport

_COLOURS = {"ok": "green", "note": "green", "warning": "yellow", "error": "red"}
_MAX_CLASSES = 4


def print_report(report: Report, console: Console) -> None:
    """Print the report of every task, then the findings about the data as a whole."""
    table = Table("task", "present", "invalid", "values", "verdict")
    for task in report.tasks:
        table.add_row(
            escape(task.task),
            f"{100 * task.labelled / report.samples:.4g} %",
            f"{100 * task.invalid:.3g} %",
            escape(_values(task)),
            _verdict(task),
        )
    console.print(table)
    for finding in report.findings:
        console.print(f"[{_COLOURS[finding.level]}]{finding.level}[/]: {escape(finding.message)}")
    console.print(
        f"{report.read} of {report.samples} samples of {escape(report.split)} read: {report.level}"
    )


def _values(task: TaskReport) -> str:
    if task.shares:
        ordered = sorted(task.shares.items(), key=lambda item: -item[1])
        shown = [f"{name}: {100 * fraction:.3g} %" for name, fraction in ordered[:_MAX_CLASSES]]
        more = len(ordered) - len(shown)
        return ", ".join([*shown, *([f"{more} more"] if more else [])])
    channels = zip(task.low, task.high, task.mean, task.deviation, strict=True)
    lines = [f"{low:.3g} to {high:.3g}, {m:.3g} ± {d:.3g}" for low, high, m, d in channels]
    return "\n".join(f"{line} {task.unit}".rstrip() for line in lines)


def _verdict(task: TaskReport) -> str:
    colour = _COLOURS[task.level]
    messages = "; ".join(finding.message for finding in task.findings)
    return f"[{colour}]{task.level}[/]{': ' + escape(messages) if messages else ''}"
