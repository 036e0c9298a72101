"""The command `dmtg report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from trainer.commands.options import Plugins
from trainer.commands.output import AsJson, finish
from trainer.errors import UserError

_PAGE_SUFFIXES = (".html", ".htm")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of runs, or of a comparison."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File to write; RUN/report.html, for several ./report.html."),
    ] = None,
    png: Annotated[
        bool, typer.Option("--png", help="Draw a picture of one run, RUN/report.png.")
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(help="Metrics to show beside, as `dmtg eval --out` writes them."),
    ] = None,
    use_data: Annotated[
        bool,
        typer.Option("--data/--no-data", help="Read the data: constants, sample predictions."),
    ] = True,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Write a page about one run or several: groups, curves, samples, differences.

    The page is one HTML file that needs no network. With --png, or an --out that ends with .png,
    .pdf or .svg, draw the grouping, the number of heads and the loss of one run instead.
    """
    from dmtg.plugins import load_plugins
    from trainer.report.records import expand_comparisons

    load_plugins(plugin or ())
    folders = expand_comparisons(runs)
    if png or (out is not None and out.suffix not in ("", *_PAGE_SUFFIXES)):
        finish(as_json, {"report": str(_draw(folders, out))})
        return
    from trainer.report.page import write_page
    from trainer.scoring.reference import read_reference

    default = folders[0] if len(folders) == 1 else Path()
    path = out or default / "report.html"
    path = path if path.suffix else path.with_suffix(".html")
    write_page(
        folders,
        path,
        reference=None if reference is None else read_reference(reference),
        reference_name="" if reference is None else reference.name,
        use_data=use_data,
        progress=sys.stderr.isatty(),
    )
    finish(as_json, {"report": str(path)})


def _draw(folders: list[Path], out: Path | None) -> Path:
    from trainer.report.picture import draw_report

    if len(folders) > 1:
        raise UserError(f"--png: found {len(folders)} runs; allowed: one")
    path = out or folders[0] / "report.png"
    draw_report(folders[0], path)
    return path
