"""The command `dmtg push`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trainer.commands.options import Plugins, Preprocess
from trainer.commands.output import AsJson, echo, finish
from trainer.errors import UserError


def push(
    run: Annotated[Path, typer.Argument(help="Folder of the run, or an exported model.")],
    repo: Annotated[str, typer.Argument(help="Repository, as in USER/NAME; made if need be.")],
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="FORMAT", help="Upload onnx or torch, too; repeatable."),
    ] = None,
    preprocessing: Preprocess = "normalize",
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository readable by everyone.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; the main one by default.")] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="Of the model, such as apache-2.0.")
    ] = None,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Upload the model and its card",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Export and write the card, but upload nothing.")
    ] = False,
    shards_dir: Annotated[
        str | None, typer.Option("--shards", help="Compare on these shards, not on the run's.")
    ] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Upload the exported model and its card to the Hugging Face hub, in one commit."""
    from dmtg.plugins import load_plugins
    from trainer.deployment.deploy import Format
    from trainer.deployment.deployed import preprocessing_of
    from trainer.deployment.hub import push as upload

    formats: list[Format] = []
    for name in also or ():
        if name not in ("onnx", "torch"):
            raise UserError(f"--also: found {name!r}; allowed: onnx, torch")
        formats.append("onnx" if name == "onnx" else "torch")
    steps = preprocessing_of(preprocessing)
    if not formats and steps != "normalize":
        raise UserError(f"--preprocessing: found {steps!r}; allowed only with --also onnx or torch")
    load_plugins(plugin or ())
    report = upload(
        run,
        repo,
        formats,
        preprocessing=steps,
        public=public,
        revision=revision,
        licence=licence,
        message=message,
        shards=shards_dir,
        dry_run=dry_run,
    )
    if as_json:
        finish(True, asdict(report))
        return
    for name, size in report.files.items():
        echo(f"{name}: {size:,} bytes")
    echo("nothing was uploaded" if report.url is None else f"commit: {report.url}")
