"""The command `dmtg predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.commands.options import Overwrite, Plugins
from trainer.commands.output import AsJson, finish


def predict(
    model: Annotated[Path, typer.Argument(help="An exported model.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")],
    overwrite: Overwrite = False,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Write a picture per dense task and a JSON of the attributes for every image."""
    from dmtg.plugins import load_plugins
    from trainer.prediction import predict_images

    load_plugins(plugin or ())
    records = predict_images(model, images, out, overwrite=overwrite)
    finish(as_json, {"out": str(out), "images": records} if as_json else {"images": len(records)})
