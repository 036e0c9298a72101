"""The command `dmtg doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.commands.output import AsJson, finish, table_console


def doctor(
    root: Annotated[str, typer.Argument(help="Folder or URL of shards.")],
    samples: Annotated[int, typer.Option(min=1, help="Samples to read, spread evenly.")] = 512,
    split: Annotated[str, typer.Option(help="Split to read.")] = "train",
    out: Annotated[
        Path | None, typer.Option("--out", help="Contact sheet to write; by default none.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge the labels of a data set; exit with 1 on an error that makes training meaningless."""
    from trainer.doctor.examine import examine
    from trainer.doctor.table import print_report

    report = examine(root, samples, split, out)
    print_report(report, table_console())
    sheet = {} if out is None else {"sheet": str(out)}
    finish(as_json, {**sheet, **(report.to_json() if as_json else {})})
    if report.level == "error":
        raise typer.Exit(1)
