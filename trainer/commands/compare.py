"""The command `dmtg compare`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmtg.secrets import without_secrets
from dmtg.terminal import shown
from trainer.commands.output import AsJson, echo, finish, print_json, table_console
from trainer.errors import UserError

if TYPE_CHECKING:
    from trainer.compare.cells import Cell

DEFAULT_RECIPES = "evidence,published,random,multitask,single_task,tag,grad_tag"
_STOPPED = 75  # exit code of a run that has saved and continues when it is started again


def compare(
    config: Annotated[Path, typer.Argument(help="YAML file of all runs.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for runs, tables and plot.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[section.key=value]...", help="For all runs.")
    ] = None,
    recipes: Annotated[str, typer.Option(help="Grouping recipes, by commas.")] = DEFAULT_RECIPES,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every recipe.")] = 3,
    seed_base: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    launch: Annotated[
        Path | None, typer.Option(help="Launch file (`dmtg launch-files`); else one process.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Recipe to compare with; else single_task, multitask or the first."),
    ] = None,
    only: Annotated[int | None, typer.Option(min=0, help="Train this cell and stop.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Show the cells and stop.")] = False,
    keep_going: Annotated[
        bool,
        typer.Option("--keep-going", help="Continue after a failed run; exit with 1 at the end."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train several recipes with several seeds, then print and save tables and a plot.

    Finished runs are not trained again. In a job array give every job another --only, and when all
    have ended run the command without it to write the tables. Exit codes: 1 a run failed, 75 a run
    was stopped by SIGUSR1 or run.max_minutes and has saved.
    """
    from trainer.compare.cells import plan_cells

    names = [name.strip() for name in recipes.split(",")]
    numbers = range(seed_base, seed_base + seeds)
    cells = plan_cells(config, names, numbers, out, overrides or [])
    if launch is not None and not launch.is_file():
        raise UserError(f"--launch {launch}: no such file")
    if only is not None and only >= len(cells):
        raise UserError(f"--only: found {only}; allowed: 0 to {len(cells) - 1}")
    if reference is not None and reference not in names:
        raise UserError(f"--reference: found {reference!r}; allowed: {', '.join(names)}")
    if show:
        _list(cells, as_json)
        return
    records = _train(cells if only is None else [cells[only]], launch, keep_going)
    failed = any(record["status"] == "failed" for record in records)
    if any(record["status"] == "stopped" for record in records):
        raise typer.Exit(_STOPPED)
    if only is not None and not failed:
        finish(as_json, {key: records[0][key] for key in ("recipe", "seed", "status", "seconds")})
    elif len(records) == len(cells):
        shared = without_secrets(shlex.join([str(config), *(overrides or [])]))
        about = f"Runs of `{shared}`, seeds {numbers[0]} to {numbers[-1]}."
        _report(records, out, about, reference, as_json)
    if failed:
        raise typer.Exit(1)


def _list(cells: Sequence[Cell], as_json: bool) -> None:
    rows = [
        {
            "cell": cell.index,
            "recipe": cell.recipe,
            "seed": cell.seed,
            "status": cell.load()["status"],
            "folder": str(cell.folder),
        }
        for cell in cells
    ]
    if as_json:
        print_json({"cells": rows})
        return
    for row in rows:
        echo("  ".join(str(row[name]) for name in ("cell", "recipe", "seed", "status")))
    echo(f"folders: {cells[0].folder.parent.parent}/RECIPE/seed-SEED")


def _train(cells: Sequence[Cell], launch: Path | None, keep_going: bool) -> list[dict[str, Any]]:
    """Run cells in order and return their records; end at the first stopped or failed one.

    Args:
        keep_going: Whether to continue after a failed cell.
    """
    from tqdm import tqdm

    from trainer.compare.cells import run_cell

    records = []
    with tqdm(cells, unit="run") as bar:
        for cell in bar:
            bar.set_description(f"{cell.recipe}, seed {cell.seed}")
            records.append(run_cell(cell, launch))
            if records[-1]["status"] == "failed":
                bar.write(shown(f"error: {records[-1]['message']}"), file=sys.stderr)
                if not keep_going:
                    break
            elif records[-1]["status"] == "stopped":
                break
    return records


def _report(
    records: list[dict[str, Any]], out: Path, about: str, reference: str | None, as_json: bool
) -> None:
    from trainer.compare.report import print_tables, save_comparison

    results, tables, defined = save_comparison(records, out, about, reference)
    console = table_console()
    print_tables(tables, console)
    console.print(defined, markup=False)
    files = [str(out / f"compare.{kind}") for kind in ("md", "json", "png")]
    if as_json:
        print_json({"files": files, "recipes": [asdict(result) for result in results]})
    else:
        echo("\n".join(files))
