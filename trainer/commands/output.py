"""How the commands of `dmtg` hand over their results."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def finish(as_json: bool, values: dict[str, Any]) -> None:
    """Print the results, a line each or as one JSON object."""
    if as_json:
        print_json(values)
        return
    for name, value in values.items():
        typer.echo(f"{name}: {value}")


def print_json(values: dict[str, Any]) -> None:
    """Print one JSON object on one line."""
    typer.echo(json.dumps(values))
