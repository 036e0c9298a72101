"""The command `dmtg schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmtg.files import atomic_write, check_outputs
from trainer.commands.options import Overwrite, Plugins
from trainer.commands.output import AsJson, echo, finish
from trainer.errors import UserError


def schema(
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; else it is printed.")
    ] = None,
    plugin: Plugins = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write the JSON Schema of configuration files, for completion and checks in editors.

    The first line of a configuration beside it: # yaml-language-server: $schema=FILE
    """
    from dmtg.plugins import load_plugins
    from trainer.reference.json_schema import schema_text

    load_plugins(plugin or ())
    text = schema_text()
    if out is None:
        echo(text.removesuffix("\n"))
        return
    try:
        check_outputs([(out, "the schema")], overwrite=overwrite)
    except ValueError as error:
        raise UserError(str(error)) from None
    with atomic_write(out) as file:
        file.write(text)
    finish(as_json, {"schema": str(out)})
