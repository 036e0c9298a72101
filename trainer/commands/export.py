"""The command `dmtg export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from data_pipelines.errors import DataError
from trainer.commands.options import Plugins, Preprocess, Tasks
from trainer.commands.output import AsJson, finish
from trainer.errors import UserError


def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run, or an exported model.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="safetensors, onnx, or torch (torch.export); by default what --out ends in.",
        ),
    ] = None,
    preprocessing: Preprocess = "normalize",
    tasks: Tasks = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write a model card, README.md, beside the file.")
    ] = False,
    shards_dir: Annotated[
        str | None, typer.Option("--shards", help="Compare on these shards, not on the run's.")
    ] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Write the run's pruned model after comparing its predictions with the full model's."""
    from dmtg.plugins import load_plugins
    from model.bundle import load_pruned
    from trainer.deployment.card import CARD, check_card, write_card
    from trainer.deployment.deploy import deploy, format_of
    from trainer.deployment.deployed import preprocessing_of
    from trainer.export import export_run

    chosen, steps = format_of(out, output_format), preprocessing_of(preprocessing)
    if chosen == "safetensors" and steps != "normalize":
        raise UserError(
            f"--preprocessing: found {steps!r}; allowed only with --format onnx or torch: an "
            "exported model does it in `predict`"
        )
    load_plugins(plugin or ())
    if card:
        check_card(out.parent / CARD)
    report: Any
    try:
        if run.is_dir() and chosen == "safetensors" and not tasks:
            report = export_run(run, out, shards_dir)
            if card:
                write_card(out, load_pruned(out), run)
        else:
            report = deploy(
                run,
                out,
                chosen,
                preprocessing=steps,
                tasks=tasks or None,
                card=card,
                shards=shards_dir,
            )
    except DataError as error:
        if shards_dir is not None or "://" not in str(error):
            raise
        raise UserError(
            f"{error}; a run does not store the credentials of its URLs: if the data need any, "
            "name them with --shards"
        ) from None
    finish(as_json, asdict(report))
