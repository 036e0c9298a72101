"""How the commands of `dmtg` print their results."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.json_file import to_json

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def finish(as_json: bool, values: dict[str, Any]) -> None:
    """Print the results, one per line or as one JSON object."""
    if as_json:
        print_json(values)
        return
    for name, value in values.items():
        typer.echo(f"{name}: {value}")


def print_json(values: dict[str, Any]) -> None:
    """Print one JSON object on one line; numbers that are not finite become null."""
    typer.echo(to_json(values))


def table_console(width: int, *, highlight: bool = True) -> Console:
    """Return the console for tables: as wide as the terminal, `width` columns without one."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width, highlight=highlight)
