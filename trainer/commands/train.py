"""The command `dmtg train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.commands.output import echo


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes; one for each GPU, or one without GPUs.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Launch file by name (dmtg launch-files) or path: ddp, zero2, ddp_cpu."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")
    ] = False,
) -> None:
    """Train a run, or continue it with run.resume=auto.

    It is the short form of `accelerate launch --config_file FILE trainer/main.py --config CONFIG`.
    Ctrl-C once saves and stops, twice ends at once. Exit codes: docs/failures.md.
    """
    from trainer.guarded import leave
    from trainer.start import print_config
    from trainer.start import train as train_in_this_process

    options = overrides or []
    if show:
        raise typer.Exit(print_config(config, options))

    from trainer.config.loading import load_config
    from trainer.launching import launch, plan_launch, prepare_process

    loaded = load_config(config, options)
    plan = plan_launch(loaded, engine, processes)
    if plan.reason:
        echo(f"training on {plan.reason}")
    if plan.file is None:
        prepare_process(plan)
        leave(train_in_this_process(config, options))
    given = [] if engine is None else ["--engine", engine]
    given += [] if processes is None else ["--processes", str(processes)]
    raise typer.Exit(launch(plan, config, options, given, loaded.run.out))
