"""What the commands `dmtg shards` print when a conversion ends."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.commands.output import echo, finish, table_console
from trainer.errors import UserError

if TYPE_CHECKING:
    from data_pipelines.shards.manifest import Manifest

WIDTH = 80  # columns of a table where the output is no terminal
_REASONS_SHOWN = 3


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise a ValueError of the block, other than one of the data, as the command's error."""
    from data_pipelines.errors import DataError

    try:
        yield
    except DataError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None


def split_sizes(manifest: Manifest) -> dict[str, int]:
    """Return the number of samples of each split."""
    return {name: split.num_samples for name, split in manifest.splits.items()}


def summarise(
    as_json: bool, out: Path, manifest: Manifest, more: dict[str, Any] | None = None
) -> None:
    """Print what was converted and what was left out, and the commands that come next.

    Args:
        as_json: Whether to print one JSON object instead.
        out: Folder of the shards.
        manifest: Their manifest.
        more: Further results for the JSON object.
    """
    splits = manifest.splits
    labelled = {
        field: {name: split.labelled.get(field, 0) for name, split in splits.items()}
        for field in manifest.fields
    }
    conversion = manifest.conversion
    skipped = conversion.skipped if conversion else {}
    missing = conversion.missing if conversion else {}
    values: dict[str, Any] = {"out": str(out), "samples": split_sizes(manifest), "skipped": skipped}
    if as_json:
        finish(True, values | {"labelled": labelled, "missing": missing} | (more or {}))
        return
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from data_pipelines.convert.unreadable import counted

    table = Table("field", *(escape(name) for name in splits), "left out", box=box.SIMPLE)
    for name, counts in labelled.items():
        reasons = counted(missing.get(name, {}), _REASONS_SHOWN)
        table.add_row(escape(name), *(str(count) for count in counts.values()), escape(reasons))
    table_console(WIDTH).print(table)
    finish(False, values)
    empty = [name for name, counts in labelled.items() if not any(counts.values())]
    if empty:
        echo(f"no labels: {', '.join(empty)}: leave them out of the mapping or of the tasks")
    next_commands(out)


def summarise_mix(as_json: bool, out: Path, manifest: Manifest) -> None:
    """Print the sources of a mix and their tasks, and the commands that come next.

    Args:
        as_json: Whether to print one JSON object instead.
        out: Folder of the mix.
        manifest: Its manifest.
    """
    samples = {name: _samples_of(name, manifest) for name in manifest.sources}
    tasks = {
        name: [field for field in source.fields if manifest.fields[field].kind != "image"]
        for name, source in manifest.sources.items()
    }
    num_tasks = len(set().union(*tasks.values()))
    values: dict[str, Any] = {"out": str(out), "samples": split_sizes(manifest)}
    if as_json:
        sources = {name: {"samples": samples[name], "tasks": tasks[name]} for name in samples}
        finish(True, values | {"sources": sources, "tasks": num_tasks})
        return
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("source", *map(escape, manifest.splits), "tasks", box=box.SIMPLE)
    for name, counts in samples.items():
        table.add_row(escape(name), *map(str, counts.values()), str(len(tasks[name])))
    table_console(WIDTH).print(table)
    finish(False, values | {"tasks": num_tasks})
    next_commands(out)


def _samples_of(source: str, manifest: Manifest) -> dict[str, int]:
    return {
        name: sum(shard.samples for shard in split.shards if shard.source == source)
        for name, split in manifest.splits.items()
    }


def next_commands(out: Path) -> None:
    """Print the commands that a user can run with new shards."""
    folder = shlex.quote(str(out))
    echo("next: check the labels, then write a configuration to train with")
    echo(f"  dmtg doctor {folder}")
    echo(f"  dmtg init {folder}")
