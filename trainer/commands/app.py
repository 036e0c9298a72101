"""The command `dmtg`: everything that is not training."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from data_pipelines.errors import DataError
from model.bundle import BundleError
from trainer.commands.bench import bench
from trainer.commands.compare import compare
from trainer.commands.output import AsJson, finish, print_json
from trainer.commands.plan import plan
from trainer.commands.shards import shards
from trainer.commands.slurm import slurm
from trainer.commands.status import status
from trainer.errors import UserError

app = typer.Typer(
    help="Multi-task training that learns the grouping: data, export, evaluation, prediction.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(shards, name="shards")
app.add_typer(bench, name="bench")
app.command()(compare)
app.command()(plan)
app.command()(slurm)
app.command()(status)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")],
    shards_dir: Annotated[
        str | None, typer.Option("--shards", help="Compare on these shards, not the run's own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the run's pruned model, compared with the full one before it gets its name."""
    from trainer.export import export_run

    finish(as_json, asdict(export_run(run, out, shards_dir)))


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="An exported model.")],
    shards_dir: Annotated[str, typer.Option("--shards", help="Folder or URL of shards.")],
    split: Annotated[str, typer.Option(help="Split to evaluate.")] = "val",
    train_split: Annotated[str, typer.Option(help="Split the constants come from.")] = "train",
    reference: Annotated[
        Path | None, typer.Option(help="Metrics to compare with, as --out writes them.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON file for the model's metrics.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 unless every task beats its constant.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the metrics of a model beside those of a constant prediction, or of a reference."""
    from trainer.scoring.reference import read_reference, write_reference
    from trainer.scoring.scores import score_model, scores_json
    from trainer.scoring.table import print_scores

    found = score_model(
        model,
        shards_dir,
        reference=None if reference is None else read_reference(reference),
        split=split,
        train_split=train_split,
    )
    print_scores(found, Console(width=None if sys.stdout.isatty() else 120))
    if out is not None:
        write_reference(out, found.metrics)
    if as_json:
        summary = asdict(found.summary)
        print_json(
            {"scores": scores_json(found.scores), "metrics": found.metrics, "summary": summary}
        )
    if check and not all(score.beats_constant for score in found.scores):
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
    finish(as_json, {"out": str(out), "images": records} if as_json else {"images": len(records)})


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[Path | None, typer.Option("--out", help="Picture; RUN/report.png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the grouping that a run learned, its heads alive and its loss."""
    from trainer.report.picture import draw_report

    path = out or run / "report.png"
    draw_report(run, path)
    finish(as_json, {"report": str(path)})


@app.command()
def doctor(
    root: Annotated[str, typer.Argument(help="Folder or URL of shards.")],
    samples: Annotated[int, typer.Option(min=1, help="Samples to read, spread evenly.")] = 512,
    split: Annotated[str, typer.Option(help="Split to read.")] = "train",
    out: Annotated[Path, typer.Option("--out", help="Contact sheet.")] = Path("doctor.png"),
    as_json: AsJson = False,
) -> None:
    """Check the labels of a dataset; exit with 1 on an error that makes training meaningless."""
    from trainer.doctor.examine import examine
    from trainer.doctor.table import print_report

    report = examine(root, samples, split, out)
    print_report(report, Console(width=None if sys.stdout.isatty() else 140))
    finish(as_json, {"sheet": str(out), **(report.to_json() if as_json else {})})
    if report.level == "error":
        raise typer.Exit(1)


def main() -> None:
    """Run `dmtg`; what the user can mend is one message and exit code 2."""
    try:
        app()
    except (UserError, DataError, BundleError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
