"""The command `dmtg export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trainer.commands.options import Plugins
from trainer.commands.output import AsJson, finish


def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")],
    shards_dir: Annotated[
        str | None, typer.Option("--shards", help="Compare on these shards, not on the run's.")
    ] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Write the run's pruned model after comparing its predictions with the full model's."""
    from dmtg.plugins import load_plugins
    from trainer.export import export_run

    load_plugins(plugin or ())
    finish(as_json, asdict(export_run(run, out, shards_dir)))
