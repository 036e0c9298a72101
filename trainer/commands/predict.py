"""The command `dmtg predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dmtg.terminal import shown
from trainer.commands.options import Overwrite, Plugins, Tasks
from trainer.commands.output import AsJson, finish
from trainer.errors import UserError

_SHOWN_ERRORS = 10


def predict(
    model: Annotated[Path, typer.Argument(help="An exported model.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the predictions.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Photos: files, folders, and patterns such as 'photos/**/*.jpg'."),
    ] = None,
    lists: Annotated[
        list[str] | None,
        typer.Option("--list", help="Text file with a photo in each line; - reads standard input."),
    ] = None,
    shards_dir: Annotated[
        str | None,
        typer.Option("--shards", help="Folder or URL of shards; labels are shown, too."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the shards.")] = "val",
    limit: Annotated[int | None, typer.Option(min=1, help="First samples of the split.")] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="png (pictures of the maps), npy (their values), jsonl (one file with a line for "
            "each photo); repeatable. [default: png]",
        ),
    ] = None,
    tasks: Tasks = None,
    overview: Annotated[
        bool, typer.Option(help="With png: a picture of all predictions of a photo.")
    ] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos computed together.")] = 16,
    workers: Annotated[int, typer.Option(min=1, help="Processes that read photos.")] = 1,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda:1; by default a GPU if there is one.")
    ] = None,
    on_error: Annotated[
        str, typer.Option(help="A photo that cannot be read: stop, or skip it and exit with 1.")
    ] = "stop",
    overwrite: Overwrite = False,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Write the predictions of photos: pictures or arrays of maps, JSON of the other tasks."""
    from dmtg.plugins import load_plugins
    from trainer.prediction.predict import Options, on_error_of, predict_files, predict_shards

    if shards_dir is not None and (images or lists):
        raise UserError("--shards: photos of shards or in files, not both; run the command twice")
    if shards_dir is None and limit is not None:
        raise UserError("--limit: allowed only with --shards, whose first samples it takes")
    load_plugins(plugin or ())
    options = Options(
        tasks=tasks or None,
        formats=tuple(dict.fromkeys(formats or ("png",))),
        overview=overview,
        batch_size=batch_size,
        workers=workers,
        device=device,
        on_error=on_error_of(on_error),
        overwrite=overwrite,
        progress=True,
    )
    if shards_dir is None:
        records = predict_files(model, images or (), out, options, lists=lists or ())
    else:
        records = predict_shards(model, shards_dir, out, options, split=split, limit=limit)
    kept: list[dict[str, Any]] = []
    count, errors = 0, []
    for record in records:
        count += 1
        if as_json:
            kept.append(record)
        if "error" in record:
            errors.append(record["error"])
    if as_json:
        finish(True, {"out": str(out), "images": kept})
    else:
        finish(False, {"images": count - len(errors), "out": str(out)})
    if errors:
        for error in errors[:_SHOWN_ERRORS]:
            typer.echo(shown(f"left out: {error}"), err=True)
        more = len(errors) - _SHOWN_ERRORS
        if more > 0:
            typer.echo(f"and {more} more", err=True)
        raise typer.Exit(1)
