"""The command `dmtg export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from data_pipelines.errors import DataError
from trainer.commands.options import Plugins
from trainer.commands.output import AsJson, finish
from trainer.errors import UserError


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
    try:
        report = export_run(run, out, shards_dir)
    except DataError as error:
        if shards_dir is not None or "://" not in str(error):
            raise
        raise UserError(
            f"{error}; a run does not store the credentials of its URLs: if the data need any, "
            "name them with --shards"
        ) from None
    finish(as_json, asdict(report))
