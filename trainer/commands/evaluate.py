"""The command `dmtg eval`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trainer.commands.options import Plugins
from trainer.commands.output import AsJson, print_json, table_console


def evaluate(
    model: Annotated[Path, typer.Argument(help="An exported model.")],
    shards_dir: Annotated[str, typer.Option("--shards", help="Folder or URL of shards.")],
    split: Annotated[str, typer.Option(help="Split to evaluate.")] = "val",
    train_split: Annotated[
        str, typer.Option(help="Split from which the constant predictions are computed.")
    ] = "train",
    reference: Annotated[
        Path | None, typer.Option(help="Metrics to compare with, as --out writes them.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON file for the model's metrics.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 unless every task beats its constant.")
    ] = False,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Print the metrics of a model beside those of a constant prediction, or of a reference."""
    from dmtg.plugins import load_plugins
    from trainer.scoring.reference import read_reference, write_reference
    from trainer.scoring.scores import score_model, scores_json
    from trainer.scoring.table import print_scores

    load_plugins(plugin or ())
    evaluation = score_model(
        model,
        shards_dir,
        reference=None if reference is None else read_reference(reference),
        split=split,
        train_split=train_split,
    )
    print_scores(evaluation, table_console(), None if reference is None else reference.name)
    if out is not None:
        write_reference(out, evaluation.metrics)
    if as_json:
        print_json(
            {
                "scores": scores_json(evaluation.scores),
                "metrics": evaluation.metrics,
                "summary": asdict(evaluation.summary),
                "change_against_constant": evaluation.against_constant.mean,
            }
        )
    if check and not all(score.beats_constant for score in evaluation.scores):
        raise typer.Exit(1)
