"""The command `dmtg init`."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from dmtg.files import atomic_write, check_outputs
from dmtg.names import one_line, to_file_name
from dmtg.secrets import without_secrets
from trainer.commands.options import Overwrite
from trainer.commands.output import AsJson, finish
from trainer.errors import UserError


def init(
    shards: Annotated[str, typer.Argument(help="Folder or URL of shards.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; the data set's name with .yaml.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented configuration to start with, for the labels and images of shards.

    Beside it the JSON Schema is written for editors, unless there is one.
    """
    from dmtg.yaml_text import parse_yaml
    from trainer.config.loading import parse_config
    from trainer.initial_config.choices import choose
    from trainer.initial_config.text import SCHEMA, starting_text
    from trainer.reference.json_schema import schema_text
    from trainer.run_data import open_data

    if without_secrets(shards) != shards:
        raise UserError(
            f"{without_secrets(shards)}: its URL has a user, a password or a query, which the file "
            "would hold; give the credentials by the environment or a profile"
        )
    start = choose(shards)
    path = out or Path(f"{to_file_name(start.dataset)}.yaml")
    try:
        check_outputs([(path, "the configuration")], overwrite=overwrite)
    except ValueError as error:
        raise UserError(str(error)) from None
    command = shlex.join(["dmtg", "train", str(path)])
    text = starting_text(start, command)
    open_data(parse_config(parse_yaml(text), str(path)))  # it trains as written
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text)
    schema = path.parent / SCHEMA
    if not schema.exists():
        with atomic_write(schema) as file:
            file.write(schema_text())
    kinds = Counter(task.kind for task in start.tasks)
    tasks = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    left_out = {name: one_line(reason, 200) for name, reason in start.left_out.items()}
    values = {"config": str(path), "tasks": f"{len(start.tasks)} ({tasks})"}
    if as_json:
        finish(True, {**values, "left_out": left_out, "next": command})
        return
    for name, reason in left_out.items():
        values[f"left out: {one_line(name)}"] = reason
    finish(False, {**values, "next": command})
