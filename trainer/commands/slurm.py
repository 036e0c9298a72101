"""The command `dmtg slurm`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmtg.files import atomic_write
from dmtg.secrets import without_secrets
from trainer.commands.compare import DEFAULT_RECIPES, ComparedCells
from trainer.commands.output import AsJson, finish
from trainer.errors import UserError

if TYPE_CHECKING:
    from trainer.slurm.scripts import Resources


def slurm(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the job.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="0 trains on CPUs.")] = 0,
    cpus_per_task: Annotated[
        int | None,
        typer.Option(min=1, help="Cores of a node; else 1 + data.workers a process."),
    ] = None,
    time: Annotated[str, typer.Option(help="Time limit, as Slurm writes it.")] = "24:00:00",
    grace: Annotated[
        int, typer.Option(help="Seconds before the limit at which the run is asked to save.")
    ] = 120,
    account: Annotated[str | None, typer.Option(help="Account to charge.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition of the cluster.")] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option(help="Another option of sbatch: constraint=a100. Repeat.")
    ] = None,
    accelerate_config: Annotated[
        Path | None, typer.Option(help="Launch file; zero2.yaml, or ddp_cpu.yaml without GPUs.")
    ] = None,
    processes_per_node: Annotated[
        int | None, typer.Option(min=1, help="One for each GPU, or one.")
    ] = None,
    setup: Annotated[
        str | None, typer.Option(help="Shell commands to run first; else this environment.")
    ] = None,
    wrap: Annotated[str, typer.Option(help="Put before the launcher: apptainer exec ...")] = "",
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Restarts of failed processes within the job.")
    ] = 0,
    compare: Annotated[
        Path | None, typer.Option(help="A job array for `dmtg compare` with this --out instead.")
    ] = None,
    recipes: Annotated[str, typer.Option(help="Of the comparison, by commas.")] = DEFAULT_RECIPES,
    k: Annotated[
        str | None, typer.Option("--k", help="Numbers of branches of the comparison, by commas.")
    ] = None,
    single_task_chunk: Annotated[
        int | None, typer.Option(min=1, help="Of the comparison: tasks in a run of single_task.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every recipe.")] = 3,
    seed_base: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="The script to write.")] = Path("job.sbatch"),
    send: Annotated[bool, typer.Option("--submit", help="Hand it to sbatch.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a Slurm job that trains, saves before its time limit, and queues itself again.

    The configuration is checked first.
    """
    from trainer.slurm.scripts import Resources, submit

    options = overrides or []
    _check_no_secrets(config, options)
    resources = Resources(
        nodes, gpus_per_node, cpus_per_task, time, grace, account, partition, tuple(sbatch or ())
    )
    launch = accelerate_config
    if launch is not None and not launch.is_file():
        raise UserError(f"--accelerate-config {launch}: no such file")
    if compare is None:
        more = {"WRAP": wrap, "MAX_RESTARTS": str(max_restarts)}
        if processes_per_node is not None:
            more["PROCESSES_PER_NODE"] = str(processes_per_node)
        text, result = _train_job(config, options, resources, launch, setup, more)
    else:
        if nodes > 1:
            raise UserError(f"--nodes: found {nodes}; a run of --compare has one node")
        numbers = range(seed_base, seed_base + seeds)
        cells = ComparedCells(compare, recipes, numbers, k, single_task_chunk)
        text, result = _compare_job(config, options, cells, resources, launch, setup, wrap)
    with atomic_write(out) as file:
        file.write(text)
    result = {"script": str(out), **result}
    finish(as_json, result | ({"job": submit(out)} if send else {}))


def _check_no_secrets(source: Path, overrides: Sequence[str]) -> None:
    """Refuse credentials in what would be written into the script, which others may read.

    Raises:
        UserError: The URL of an override has a user, a password or a query.
    """
    for text in (str(source), *overrides):
        if without_secrets(text) != text:
            raise UserError(
                f"override {without_secrets(text)!r}: its URL has a user, a password or a query, "
                "which the script would hold; give it in the YAML file, or give the credentials "
                "by the environment or a profile"
            )


def _train_job(
    source: Path,
    overrides: Sequence[str],
    resources: Resources,
    launch: Path | None,
    setup: str | None,
    variables: dict[str, str],
) -> tuple[str, dict[str, Any]]:
    """Return the script of a run and the values to print."""
    from trainer.config.loading import load_config
    from trainer.launch_files import launch_file
    from trainer.run_folder import RunFolder
    from trainer.slurm.scripts import train_script

    config = load_config(source, [*overrides, "run.resume=auto"])
    RunFolder(config.run.out).check(config)
    launch = launch or launch_file("zero2" if resources.gpus_per_node else "ddp_cpu")
    text = train_script(config, source, overrides, resources, launch, setup, **variables)
    return text, {"run": str(config.run.out)}


def _compare_job(
    source: Path,
    overrides: Sequence[str],
    compared: ComparedCells,
    resources: Resources,
    launch: Path | None,
    setup: str | None,
    wrap: str,
) -> tuple[str, dict[str, Any]]:
    """Return the script of a job array for a comparison and the values to print."""
    from trainer.compare.plan import config_of
    from trainer.slurm.scripts import compare_script

    cells = compared.plan(source, overrides)
    arguments = [str(source.resolve()), *overrides, *compared.options()]
    if launch is not None:
        arguments += ["--launch", str(launch.resolve())]
    workers = config_of(cells[0]).data.workers
    text = compare_script(arguments, len(cells), workers, resources, setup, WRAP=wrap)
    return text, {"runs": len(cells), "then": shlex.join(["dmtg", "compare", *arguments])}
