"""The command `dmtg report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.commands.output import AsJson, finish


def report(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Picture to write; RUN/report.png.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the grouping that a run learned, its number of heads and its loss."""
    from trainer.report.picture import draw_report

    path = out or run / "report.png"
    draw_report(run, path)
    finish(as_json, {"report": str(path)})
