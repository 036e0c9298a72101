"""The command `dmtg`: everything that is not training."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from data_pipelines.errors import DataError
from data_pipelines.manifest import Manifest
from model.bundle import BundleError
from trainer.errors import UserError

app = typer.Typer(
    help="Multi-task training that learns the grouping: data, export, evaluation, prediction.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
shards = typer.Typer(help="Write data sets as WebDataset shards.", no_args_is_help=True)
app.add_typer(shards, name="shards")

OutDir = Annotated[Path, typer.Option("--out", help="Folder to write; must hold no data set.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


@shards.command()
def rooms(
    out: OutDir,
    samples: Annotated[int, typer.Option(min=1, help="Samples of both splits together.")] = 2400,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 64,
    seed: Seed = 0,
    missing: Annotated[float, typer.Option(help="Share of labels left out at random.")] = 0.0,
    val_fraction: Annotated[float, typer.Option(help="Share of samples in val.")] = 0.15,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Ray-cast rooms with exact labels in the released Taskonomy's conventions."""
    from data_pipelines.synthetic.rooms import write_rooms

    try:
        manifest = write_rooms(
            out, samples, size, seed, missing=missing, val_fraction=val_fraction, workers=workers
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    _finish(as_json, {"out": str(out), "samples": _counts(manifest)})


@shards.command()
def digits(out: OutDir, seed: Seed = 0, as_json: AsJson = False) -> None:
    """Pairs of real handwritten digits (scikit-learn's), 24 tasks."""
    from data_pipelines.synthetic.digits import write_digits

    _finish(as_json, {"out": str(out), "samples": _counts(write_digits(out, seed=seed))})


@shards.command()
def images(
    root: Annotated[Path, typer.Argument(help="Folder of shards.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the images.")],
    split: Annotated[str, typer.Option(help="Split to take them from.")] = "val",
    limit: Annotated[int, typer.Option(min=1, help="Number of images.")] = 6,
    as_json: AsJson = False,
) -> None:
    """Take the first images of a split out of the shards."""
    from data_pipelines.extract import extract_images

    _finish(as_json, {"images": len(extract_images(root, out, split=split, limit=limit))})


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")],
    shards_dir: Annotated[
        Path | None, typer.Option("--shards", help="Compare on these shards, not the run's own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the run's pruned model, compared with the full one before it gets its name."""
    from trainer.export import export_run

    _finish(as_json, asdict(export_run(run, out, shards_dir)))


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="An exported model.")],
    shards_dir: Annotated[Path, typer.Option("--shards", help="Folder of shards.")],
    split: Annotated[str, typer.Option(help="Split to evaluate.")] = "val",
    train_split: Annotated[str, typer.Option(help="Split the constants come from.")] = "train",
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 unless every task beats its constant.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the metrics of a model beside those of a constant prediction."""
    from trainer.scores import score_model, scores_json

    scores, metrics = score_model(model, shards_dir, split=split, train_split=train_split)
    table = Table("task", "group", "metric", "model", "constant", "better")
    for score in scores:
        better = "yes" if score.beats_constant else "no"
        values = (f"{score.value:.4g}", f"{score.constant:.4g}")
        table.add_row(score.task, str(score.group), score.metric, *values, better)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if as_json:
        _print_json({"scores": scores_json(scores), "metrics": metrics})
    if check and not all(score.beats_constant for score in scores):
        raise typer.Exit(1)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="An exported model.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")],
    as_json: AsJson = False,
) -> None:
    """Write a picture per dense task and a JSON of the attributes for every image."""
    from trainer.prediction import predict_images

    records = predict_images(model, images, out)
    _finish(as_json, {"out": str(out), "images": records} if as_json else {"images": len(records)})


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[Path | None, typer.Option("--out", help="Picture; RUN/report.png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the grouping that a run learned, its heads alive and its loss."""
    from trainer.report import draw_report

    path = out or run / "report.png"
    draw_report(run, path)
    _finish(as_json, {"report": str(path)})


def _counts(manifest: Manifest) -> dict[str, int]:
    return {name: split.num_samples for name, split in manifest.splits.items()}


def _finish(as_json: bool, values: dict[str, Any]) -> None:
    if as_json:
        _print_json(values)
        return
    for name, value in values.items():
        typer.echo(f"{name}: {value}")


def _print_json(values: dict[str, Any]) -> None:
    typer.echo(json.dumps(values))


def main() -> None:
    """Run `dmtg`; what the user can mend is one message and exit code 2."""
    try:
        app()
    except (UserError, DataError, BundleError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
