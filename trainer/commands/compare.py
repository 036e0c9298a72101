"""The command `dmtg compare`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmtg.secrets import without_secrets
from dmtg.terminal import shown
from trainer.commands.output import AsJson, echo, finish, print_json, table_console, wrapped
from trainer.errors import UserError

if TYPE_CHECKING:
    from trainer.compare.cells import Cell

DEFAULT_RECIPES = "evidence,published,random,multitask,single_task,tag,grad_tag"
_STOPPED = 75  # exit code of a run that has saved and continues when it is started again


@dataclass(frozen=True)
class ComparedCells:
    """The options that decide which cells a comparison has, also for `dmtg slurm --compare`.

    Attributes:
        out: `--out`.
        recipes: `--recipes`.
        seeds: Values of `run.seed`.
        k: `--k`.
        single_task_chunk: `--single-task-chunk`.
    """

    out: Path
    recipes: str
    seeds: range
    k: str | None
    single_task_chunk: int | None

    def plan(self, config: Path, overrides: Sequence[str]) -> list[Cell]:
        """Return the cells.

        Raises:
            UserError: An option is not allowed, or as `plan_cells`.
        """
        from trainer.compare.plan import plan_cells

        names = [name.strip() for name in self.recipes.split(",")]
        if self.single_task_chunk is not None and "single_task" not in names:
            raise UserError("--single-task-chunk: needs the recipe single_task in --recipes")
        return plan_cells(
            config,
            names,
            self.seeds,
            self.out,
            overrides,
            branches=self._branches(),
            single_task_chunk=self.single_task_chunk,
        )

    def _branches(self) -> list[int]:
        if self.k is None:
            return []
        try:
            return [int(part) for part in self.k.split(",")]
        except ValueError:
            raise UserError(
                f"--k: found {self.k!r}; allowed: numbers by commas, as in 1,2,4"
            ) from None

    def options(self) -> list[str]:
        """Return the options as arguments of `dmtg compare`."""
        options = ["--out", str(self.out), "--recipes", self.recipes]
        options += ["--seeds", str(len(self.seeds)), "--seed-base", str(self.seeds.start)]
        more = {"--k": self.k, "--single-task-chunk": self.single_task_chunk}
        given = [(name, str(value)) for name, value in more.items() if value is not None]
        return options + [part for pair in given for part in pair]


def compare(
    config: Annotated[Path, typer.Argument(help="YAML file of all runs.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for runs, tables and plot.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[section.key=value]...", help="For all runs.")
    ] = None,
    recipes: Annotated[
        str,
        typer.Option(help="Grouping recipes, by commas; fixed=PATH takes the groups of a file."),
    ] = DEFAULT_RECIPES,
    k: Annotated[
        str | None,
        typer.Option("--k", help="Numbers of branches, by commas: each recipe with each."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every recipe.")] = 3,
    seed_base: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    launch: Annotated[
        Path | None, typer.Option(help="Launch file (`dmtg launch-files`); else one process.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="To compare with; else random, single_task, multitask or the first."),
    ] = None,
    single_task_chunk: Annotated[
        int | None, typer.Option(min=1, help="Tasks in a run of single_task; else all of them.")
    ] = None,
    only: Annotated[int | None, typer.Option(min=0, help="Train this cell and stop.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Show the cells and stop.")] = False,
    keep_going: Annotated[
        bool,
        typer.Option("--keep-going", help="Continue after a failed run; exit with 1 at the end."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train several recipes with several seeds; print and save a verdict, tables and a plot.

    Runs with the same seed have the same initial weights and batches; recipes are compared by seed.
    Finished runs are not trained again. In a job array give every job another --only, and when all
    have ended run the command without it to write the tables. Exit codes: 1 a run failed, 75 a run
    was stopped by SIGUSR1 or run.max_minutes and has saved.
    """
    numbers = range(seed_base, seed_base + seeds)
    compared = ComparedCells(out, recipes, numbers, k, single_task_chunk)
    cells = compared.plan(config, overrides or [])
    if launch is not None and not launch.is_file():
        raise UserError(f"--launch {launch}: no such file")
    if only is not None and only >= len(cells):
        raise UserError(f"--only: found {only}; allowed: 0 to {len(cells) - 1}")
    allowed = list(dict.fromkeys(name for cell in cells for name in (cell.row, cell.recipe)))
    if reference is not None and reference not in allowed:
        raise UserError(f"--reference: found {reference!r}; allowed: {', '.join(allowed)}")
    if show:
        _list(cells, as_json)
        return
    records = _train(cells if only is None else [cells[only]], launch, keep_going)
    failed = any(record["status"] == "failed" for record in records)
    if any(record["status"] == "stopped" for record in records):
        raise typer.Exit(_STOPPED)
    if only is not None and not failed:
        finish(as_json, {**cells[only].identity, **_outcome(records[0])})
    elif len(records) == len(cells):
        shared = without_secrets(shlex.join([str(config), *(overrides or [])]))
        about = f"Runs of `{shared}`, seeds {numbers[0]} to {numbers[-1]}."
        _report(cells, records, out, about, reference, as_json)
    if failed:
        raise typer.Exit(1)


def _outcome(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("status", "seconds")}


def _list(cells: Sequence[Cell], as_json: bool) -> None:
    rows = [
        {
            "cell": cell.index,
            "recipe": cell.name,
            "seed": cell.seed,
            "status": cell.load()["status"],
            "folder": str(cell.folder),
        }
        for cell in cells
    ]
    if as_json:
        print_json({"cells": rows})
        return
    for row in rows:
        echo("  ".join(str(row[name]) for name in ("cell", "recipe", "seed", "status")))
    echo(f"folders: {cells[0].folder.parent.parent}/RECIPE/seed-SEED")


def _train(cells: Sequence[Cell], launch: Path | None, keep_going: bool) -> list[dict[str, Any]]:
    """Run cells in order and return their records; end at the first stopped or failed one.

    Args:
        keep_going: Whether to continue after a failed cell.
    """
    from tqdm import tqdm

    from trainer.compare.cells import run_cell

    records = []
    with tqdm(cells, unit="run") as bar:
        for cell in bar:
            bar.set_description(f"{cell.name}, seed {cell.seed}")
            records.append(run_cell(cell, launch))
            if records[-1]["status"] == "failed":
                bar.write(shown(f"error: {records[-1]['message']}"), file=sys.stderr)
                if not keep_going:
                    break
            elif records[-1]["status"] == "stopped":
                break
    return records


def _report(
    cells: Sequence[Cell],
    records: list[dict[str, Any]],
    out: Path,
    about: str,
    reference: str | None,
    as_json: bool,
) -> None:
    from trainer.compare.plan import remarks
    from trainer.compare.report import print_tables, save_comparison

    comparison = save_comparison(records, out, about, reference, remarks(cells))
    console = table_console()
    print_tables(comparison.tables, console)
    console.print(comparison.notes, markup=False)
    for line in comparison.sentences:
        echo(wrapped(line))
    if comparison.verdict:
        echo(wrapped(comparison.verdict))
    files = [str(out / f"compare.{kind}") for kind in ("md", "json", "png")]
    if as_json:
        values = {"verdict": comparison.verdict, "sentences": comparison.sentences}
        recipes = [asdict(result) for result in comparison.results]
        print_json({"files": files, **values, "recipes": recipes})
    else:
        echo("\n".join(files))
