"""The command `dmtg groups`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmtg.files import check_outputs
from trainer.commands.options import Overwrite
from trainer.commands.output import AsJson, echo, finish, print_json
from trainer.errors import UserError
from trainer.json_file import write_json


def groups(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="JSON file to write, which `grouping.groups` takes."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Print or write which tasks share a branch, from the first log record of a run on.

    Another run trains these groups with grouping.recipe=fixed grouping.groups=FILE. Of tasks that
    are not decided yet the file has the most probable branch.
    """
    from trainer.results.evidence_text import describe_tasks
    from trainer.results.groups import groups_json, read_groups
    from trainer.results.text import describe_groups

    found = read_groups(run)
    if out is not None:
        try:
            check_outputs([(out, "the groups")], overwrite=overwrite)
        except ValueError as error:
            raise UserError(str(error)) from None
        write_json(out, groups_json(found), indent=1)
        summary = {"tasks": len(found.tasks), "decided": found.num_decided, "step": found.step}
        finish(as_json, {"groups": str(out), **summary})
        return
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
