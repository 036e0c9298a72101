"""The commands `dmtg bench ...`: measurements that anybody can repeat."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trainer.cli_output import AsJson, print_json

bench = typer.Typer(help="Measure this trainer.", no_args_is_help=True)


@bench.callback()
def _bench() -> None:
    """Measure this trainer."""


@bench.command()
def grouping(
    tasks: Annotated[int, typer.Option(min=2, help="Number of tasks.")] = 60,
    groups: Annotated[int, typer.Option(min=1, help="Number of true groups.")] = 3,
    branches: Annotated[int, typer.Option(min=1, help="Number of branches.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="Number of problems.")] = 3,
    seed_base: Annotated[int, typer.Option(min=0, help="Seed of the first problem.")] = 0,
    recipe: Annotated[str, typer.Option(help="As grouping.recipe.")] = "default",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 256,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[section.key=value]...", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Does a recipe find groups that are known? Beside it, the true groups trained the same way."""
    from trainer import planted

    results = planted.measure_grouping(
        tasks,
        groups,
        branches,
        range(seed_base, seed_base + seeds),
        recipe,
        steps=steps,
        batch=batch,
        overrides=overrides or (),
        progress=sys.stderr.isatty(),
    )
    found = planted.as_json(results)
    _print_table(found)
    if as_json:
        print_json(found)


def _print_table(found: dict[str, Any]) -> None:
    columns = ("seed", "error", "true_error", "ratio", "ari", "branches", "seconds")
    table = Table(*columns)
    for row in (*found["seeds"], {"seed": "mean", **found["mean"]}):
        table.add_row(*(f"{row[c]:.4g}" if c != "seed" else str(row[c]) for c in columns))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
