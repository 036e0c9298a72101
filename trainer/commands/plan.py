"""The command `dmtg plan`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.commands.output import AsJson, print_json, table_console
from trainer.errors import UserError

if TYPE_CHECKING:
    from trainer.planning.forecast import Forecast
    from trainer.planning.stages import Machine, Stage

_GIB = 2**30


def plan(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of all nodes, a process on each.")] = 1,
    gpu_memory: Annotated[float, typer.Option(min=0.001, help="GiB of a GPU.")] = 80.0,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs connected by a fast link.")] = 8,
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
    from trainer.config.loading import load_config
    from trainer.planning.forecast import forecast
    from trainer.planning.stages import Machine

    settings = load_config(config, overrides or ())
    machine = Machine(gpus, gpu_memory, gpus_per_node, _speed(tflops), link)
    prediction = forecast(settings, machine, samples)
    _print(prediction, machine)
    if as_json:
        print_json(_as_record(prediction, machine))


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


def _as_record(forecast: Forecast, machine: Machine) -> dict[str, Any]:
    """Return the forecast as JSON values, with the sums that its parts have as properties."""
    record = asdict(forecast)
    for name, stage in forecast.stages.items():
        for engine in stage.memory:
            record["stages"][name]["memory"][engine]["total"] = stage.memory[engine].total
            record["stages"][name]["time"][engine]["total"] = stage.time[engine].total
    return record | {"machine": {**asdict(machine), "ring": machine.ring, "usable": machine.usable}}


def _print(forecast: Forecast, machine: Machine) -> None:
    from trainer.tables import print_table

    console = table_console(highlight=False)

    def write(line: str) -> None:
        console.print(line, markup=False)

    write(
        f"{machine.gpus} processes with {forecast.micro_batch} samples each in a pass, "
        f"{forecast.precision}; {machine.usable / _GIB:.3g} of {machine.memory:g} GiB can be used"
    )
    for name, stage in forecast.stages.items():
        write(f"\n{_describe(name, stage, forecast.micro_batch)}")
        print_table(console, *_table(stage, machine))
    write("")
    if forecast.cheapest is None:
        write("No launch file fits.")
        for line in forecast.advice:
            write(f"  {line}")
    else:
        left = machine.usable - forecast.stages["before"].memory[forecast.cheapest].total
        write(
            f"Take accelerate_configs/{forecast.cheapest}.yaml: the fastest that fits, and "
            f"{left / _GIB:.3g} GiB are to spare."
        )
    for note in forecast.notes:
        write(f"- {note}")


def _describe(name: str, stage: Stage, micro_batch: int) -> str:
    cost = stage.cost
    return (
        f"{name.capitalize()} pruning: {stage.parameters / 1e6:.2f} M parameters, {stage.heads} "
        f"heads on {stage.branches} branches, of which a step computes {stage.computed}; "
        f"{cost.flops / micro_batch / 1e9:.3g} GFLOP a sample.\n"
        f"In GiB, of a process: batch {cost.batch / _GIB:.2g}, activations "
        f"{cost.activations / _GIB:.3g}, of which copies of weights {cost.copies / _GIB:.2g}."
    )


def _table(stage: Stage, machine: Machine) -> tuple[list[str], list[list[str]]]:
    """Return the engines as titles and what they need as rows."""
    memories, times = stage.memory.values(), stage.time.values()
    numbers: dict[str, Iterable[int]] = {
        "weights": (memory.weights for memory in memories),
        "moments": (memory.moments for memory in memories),
        "gradients": (memory.gradients for memory in memories),
        "messages": (memory.communication for memory in memories),
        "step": (memory.step for memory in memories),
        "cuDNN workspaces": (memory.workspaces for memory in memories),
        "NCCL buffers": (memory.nccl for memory in memories),
        "sum": (memory.total for memory in memories),
        "on host": (memory.host for memory in memories),
    }
    rows = [
        [name, *(f"{value / _GIB:.2f}" for value in values)] for name, values in numbers.items()
    ]
    rows.append(["fits", *("yes" if m.total <= machine.usable else "no" for m in memories)])
    rows.append(["ms a step", *(f"{1e3 * time.total:.4g}" for time in times)])
    epochs = stage.epoch.values()
    rows.append(["h an epoch", *("?" if e is None else f"{e / 3600:.3g}" for e in epochs)])
    return ["GiB of a process", *stage.memory], rows
