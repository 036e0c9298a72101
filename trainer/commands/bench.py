"""The commands `dmtg bench ...`: measurements of this trainer."""

from __future__ import annotations

import os
import sys
from enum import Enum
from typing import Annotated, Any

import typer

from trainer.commands.output import AsJson, finish, print_json, table_console

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
    recipe: Annotated[str, typer.Option(help="As grouping.recipe.")] = "evidence",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 256,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[section.key=value]...", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well a recipe recovers known groups, against training with the true groups."""
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
    measured = planted.as_json(results)
    _print_table(measured)
    if as_json:
        print_json(measured)


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
    tf32 = "tf32"
    bf16 = "bf16"
    fp16 = "fp16"


class _ChannelsLast(str, Enum):
    auto = "auto"
    never = "never"


class _Compile(str, Enum):
    false = "false"
    true = "true"
    reduce_overhead = "reduce-overhead"


@bench.command()
def step(
    encoder: Annotated[
        _Encoder, typer.Option(help="Encoder of each branch; none: only heads, no optimizer.")
    ] = _Encoder.residual64,
    tasks: Annotated[int, typer.Option(min=1, help="Number of tasks.")] = 9,
    branches: Annotated[int, typer.Option(min=1, help="Number of branches.")] = 2,
    batch: Annotated[int, typer.Option(min=2, help="Samples of a step.")] = 64,
    size: Annotated[int, typer.Option(min=1, help="Height and width of an image.")] = 64,
    heads: Annotated[
        _Heads, typer.Option(help="Binary tasks, or one-channel maps by the published decoder.")
    ] = _Heads.linear,
    features: Annotated[
        int, typer.Option(min=1, help="Features, or channels, where --encoder is none.")
    ] = 512,
    device: Annotated[_Device, typer.Option(help="auto: a GPU where there is one.")] = _Device.auto,
    precision: Annotated[_Precision, typer.Option(help="run.precision of this project's step.")] = (
        _Precision.fp32
    ),
    compiled: Annotated[
        _Compile, typer.Option("--compile", help="As model.compile, for the encoder.")
    ] = _Compile.false,
    checkpoint: Annotated[
        bool, typer.Option("--checkpoint", help="As model.activation_checkpointing.")
    ] = False,
    channels_last: Annotated[
        _ChannelsLast, typer.Option(help="As model.channels_last, on a GPU.")
    ] = _ChannelsLast.auto,
    cudnn_benchmark: Annotated[
        bool, typer.Option("--cudnn-benchmark", help="As run.cudnn_benchmark, for both steps.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of steps that are timed.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Measure time and memory of a training step, against the published step and a lower bound."""
    if device is _Device.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch and child processes initialise CUDA
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
        "reduce-overhead" if compiled is _Compile.reduce_overhead else compiled is _Compile.true,
        checkpoint,
        channels_last.value,
        cudnn_benchmark,
    )
    finish(as_json, measure_step(case, repeats))


def _print_table(measured: dict[str, Any]) -> None:
    from trainer.tables import print_table

    columns = ("seed", "error", "true_error", "ratio", "ari", "branches", "seconds")
    rows = [
        [f"{row[c]:.4g}" if c != "seed" else str(row[c]) for c in columns]
        for row in (*measured["seeds"], {"seed": "mean", **measured["mean"]})
    ]
    print_table(table_console(), columns, rows)
