"""The command `dmtg groups`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.commands.output import AsJson, echo, print_json


def groups(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")], as_json: AsJson = False
) -> None:
    """Print which tasks share a branch, at any time after the first log record of a run."""
    from trainer.results.evidence_text import describe_tasks
    from trainer.results.groups import groups_json, read_groups
    from trainer.results.text import describe_groups

    found = read_groups(run)
    if as_json:
        print_json(groups_json(found))
        return
    echo(f"after step {found.step}")
    for line in describe_groups(found):
        echo(line)
    evidence = describe_tasks(found)
    if evidence:
        echo("")
    for line in evidence:
        echo(line)
