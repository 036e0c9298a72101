"""The command `dmtg plan`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trainer.commands.output import AsJson, print_json
from trainer.config.loading import load_config
from trainer.errors import UserError
from trainer.planning.forecast import Forecast, forecast
from trainer.planning.stages import GIB, Machine, Stage


def plan(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of all nodes, a process on each.")] = 1,
    gpu_memory: Annotated[float, typer.Option(min=0.001, help="GiB of a GPU.")] = 80.0,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="That share a fast link.")] = 8,
    tflops: Annotated[
        str, typer.Option(help="TFLOP/s that a GPU sustains; `measured` tries this machine's.")
    ] = "measured",
    link: Annotated[
        float | None, typer.Option(min=0.001, help="GB/s of the slowest link; 450 or 12.5.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Samples of an epoch.")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict parameters, memory and time of a run, and which launch file fits the GPUs.

    Nothing is trained. The shards need not be there if the tasks are given by a preset.
    """
    settings = load_config(config, overrides or ())
    machine = Machine(gpus, gpu_memory, gpus_per_node, _speed(tflops), link)
    found = forecast(settings, machine, samples)
    _print(found, machine)
    if as_json:
        print_json(as_record(found, machine))


def _speed(tflops: str) -> float | None:
    if tflops == "measured":
        return None
    try:
        speed = float(tflops)
    except ValueError:
        speed = 0.0
    if not speed > 0:
        raise UserError(f"--tflops: found {tflops!r}; allowed: a number above 0, or measured")
    return speed


def as_record(found: Forecast, machine: Machine) -> dict[str, Any]:
    """The forecast as JSON can hold it, with the sums that its parts have as properties."""
    record = asdict(found)
    for name, stage in found.stages.items():
        for engine in stage.memory:
            record["stages"][name]["memory"][engine]["total"] = stage.memory[engine].total
            record["stages"][name]["time"][engine]["total"] = stage.time[engine].total
    return record | {"machine": {**asdict(machine), "ring": machine.ring, "usable": machine.usable}}


def _print(found: Forecast, machine: Machine) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    say(
        f"{machine.gpus} processes with {found.micro_batch} samples each in a pass, "
        f"{found.precision}; {machine.usable / GIB:.3g} of {machine.memory:g} GiB can be used"
    )
    for name, stage in found.stages.items():
        say(f"\n{_describe(name, stage, found.micro_batch)}")
        console.print(_table(stage, machine))
    say("")
    if found.cheapest is None:
        say("No launch file fits.")
        for line in found.advice:
            say(f"  {line}")
    else:
        left = machine.usable - found.stages["before"].memory[found.cheapest].total
        say(
            f"Take accelerate_configs/{found.cheapest}.yaml: the fastest that fits, and "
            f"{left / GIB:.3g} GiB are to spare."
        )
    for note in found.notes:
        say(f"- {note}")


def _describe(name: str, stage: Stage, micro_batch: int) -> str:
    cost = stage.cost
    return (
        f"{name.capitalize()} pruning: {stage.parameters / 1e6:.2f} M parameters, {stage.heads} "
        f"heads on {stage.branches} branches, of which a step computes {stage.computed}; "
        f"{cost.flops / micro_batch / 1e9:.3g} GFLOP a sample.\n"
        f"In GiB, of a process: batch {cost.batch / GIB:.2g}, activations "
        f"{cost.activations / GIB:.3g}, of which copies of weights {cost.copies / GIB:.2g}."
    )


def _table(stage: Stage, machine: Machine) -> Table:
    columns = ("weights", "moments", "gradients", "messages", "step", "sum", "on host", "fits")
    table = Table("", *columns, "ms a step", "h an epoch")
    for engine, own in stage.memory.items():
        parts = (own.weights, own.moments, own.gradients, own.communication, own.step)
        epoch = stage.epoch[engine]
        table.add_row(
            engine,
            *(f"{part / GIB:.2f}" for part in (*parts, own.total, own.host)),
            "yes" if own.total <= machine.usable else "no",
            f"{1e3 * stage.time[engine].total:.4g}",
            "?" if epoch is None else f"{epoch / 3600:.3g}",
        )
    return table
