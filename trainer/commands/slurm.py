"""The command `dmtg slurm`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.commands.compare import DEFAULT_RECIPES
from trainer.commands.output import AsJson, finish
from trainer.compare.cells import plan_cells
from trainer.config.loading import load_config
from trainer.errors import UserError
from trainer.run_folder import RunFolder
from trainer.slurm.scripts import ROOT, Resources, compare_script, submit, train_script


def slurm(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the job.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="0 trains on CPUs.")] = 0,
    cpus_per_task: Annotated[int | None, typer.Option(min=1, help="CPUs of a node.")] = None,
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
        Path | None, typer.Option(help="Engine; zero2.yaml, or ddp_cpu.yaml without GPUs.")
    ] = None,
    processes_per_node: Annotated[
        int | None, typer.Option(min=1, help="One for each GPU, or one.")
    ] = None,
    setup: Annotated[
        str | None, typer.Option(help="Shell commands that come first; else this environment.")
    ] = None,
    wrap: Annotated[str, typer.Option(help="Put before the launcher: apptainer exec ...")] = "",
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Restarts of failed processes within the job.")
    ] = 0,
    compare: Annotated[
        Path | None, typer.Option(help="A job array for `dmtg compare` with this --out instead.")
    ] = None,
    recipes: Annotated[str, typer.Option(help="Of the comparison, by commas.")] = DEFAULT_RECIPES,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every recipe.")] = 3,
    seed_base: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="The script to write.")] = Path("job.sbatch"),
    send: Annotated[bool, typer.Option("--submit", help="Hand it to sbatch.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a Slurm job that trains, saves before its time is over, and goes on in the next.

    The configuration is checked first.
    """
    options = overrides or []
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
        own = ["--recipes", recipes, "--seeds", str(seeds), "--seed-base", str(seed_base)]
        cells = plan_cells(
            config,
            [name.strip() for name in recipes.split(",")],
            range(seed_base, seed_base + seeds),
            compare,
            options,
        )
        arguments = [str(config.resolve()), *options, "--out", str(compare), *own]
        if launch is not None:
            arguments += ["--launch", str(launch.resolve())]
        text = compare_script(arguments, len(cells), resources, setup, WRAP=wrap)
        result = {"runs": len(cells), "then": shlex.join(["dmtg", "compare", *arguments])}
    out.write_text(text, encoding="utf-8")
    result = {"script": str(out), **result}
    finish(as_json, result | ({"job": submit(out)} if send else {}))


def _train_job(
    source: Path,
    overrides: Sequence[str],
    resources: Resources,
    launch: Path | None,
    setup: str | None,
    variables: dict[str, str],
) -> tuple[str, dict[str, Any]]:
    """The script of a run, and what is told about it."""
    config = load_config(source, [*overrides, "run.resume=auto"])
    RunFolder(config.run.out).check(config)
    engine = "zero2" if resources.gpus_per_node else "ddp_cpu"
    launch = launch or ROOT / "accelerate_configs" / f"{engine}.yaml"
    text = train_script(config, source, overrides, resources, launch, setup, **variables)
    return text, {"run": str(config.run.out)}
