"""The commands `dmtg bench ...`: measurements that anybody can repeat."""

from __future__ import annotations

import os
import sys
from enum import Enum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trainer.commands.output import AsJson, finish, print_json

bench = typer.Typer(help="Measure this trainer.", no_args_is_help=True)


@bench.callback()
def _bench() -> None:
    """Measure this trainer."""


@bench.command()
def grouping(
    tasks: Annotated[int, typer.Option(min=2, help="Number of tasks.")] = 60,
    groups: Annotated[int, typer.Option(min=1, help="Number of true groups.")] = 3,
    branches: Annotated[int, typer.Option(min=1, help="Number of branches.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="Number of problems.")] = 3,
    seed_base: Annotated[int, typer.Option(min=0, help="Seed of the first problem.")] = 0,
    recipe: Annotated[str, typer.Option(help="As grouping.recipe.")] = "affinity",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 256,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[section.key=value]...", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Does a recipe find groups that are known? Beside it, the true groups trained the same way."""
    from trainer.bench import planted

    results = planted.measure_grouping(
        tasks,
        groups,
        branches,
        range(seed_base, seed_base + seeds),
        recipe,
        steps=steps,
        batch=batch,
        overrides=overrides or (),
        progress=sys.stderr.isatty(),
    )
    found = planted.as_json(results)
    _print_table(found)
    if as_json:
        print_json(found)


class _Encoder(str, Enum):
    residual64 = "residual64"
    xception = "xception"
    none = "none"


class _Heads(str, Enum):
    linear = "linear"
    dense = "dense"


class _Device(str, Enum):
    auto = "auto"
    cpu = "cpu"


class _Precision(str, Enum):
    fp32 = "fp32"
    bf16 = "bf16"


@bench.command()
def step(
    encoder: Annotated[
        _Encoder, typer.Option(help="Of every branch; none: heads alone, without optimizer.")
    ] = _Encoder.residual64,
    tasks: Annotated[int, typer.Option(min=1, help="Number of tasks.")] = 9,
    branches: Annotated[int, typer.Option(min=1, help="Number of branches.")] = 2,
    batch: Annotated[int, typer.Option(min=2, help="Samples of a step.")] = 64,
    size: Annotated[int, typer.Option(min=1, help="Height and width of an image.")] = 64,
    heads: Annotated[
        _Heads, typer.Option(help="Binary tasks, or one-channel maps by the published decoder.")
    ] = _Heads.linear,
    features: Annotated[
        int, typer.Option(min=1, help="Features, or channels, without an encoder.")
    ] = 512,
    device: Annotated[_Device, typer.Option(help="auto: a GPU where there is one.")] = _Device.auto,
    precision: Annotated[_Precision, typer.Option(help="Of this project's step.")] = (
        _Precision.fp32
    ),
    compiled: Annotated[bool, typer.Option("--compile", help="As model.compile.")] = False,
    checkpoint: Annotated[
        bool, typer.Option("--checkpoint", help="As model.activation_checkpointing.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of steps that are timed.")] = 5,
    as_json: AsJson = False,
) -> None:
    """How fast and how big is a training step? Beside the published one, and what is possible."""
    if device is _Device.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch, and its children, look for one
    from trainer.bench.case import StepCase
    from trainer.bench.step import measure_step

    case = StepCase(
        encoder.value,
        tasks,
        branches,
        batch,
        size,
        heads.value,
        features,
        precision.value,
        compiled,
        checkpoint,
    )
    finish(as_json, measure_step(case, repeats))


def _print_table(found: dict[str, Any]) -> None:
    columns = ("seed", "error", "true_error", "ratio", "ari", "branches", "seconds")
    table = Table(*columns)
    for row in (*found["seeds"], {"seed": "mean", **found["mean"]}):
        table.add_row(*(f"{row[c]:.4g}" if c != "seed" else str(row[c]) for c in columns))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
