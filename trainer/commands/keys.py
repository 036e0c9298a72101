"""The command `dmtg keys`."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmtg.files import atomic_write
from trainer.commands.options import Plugins
from trainer.commands.output import AsJson, echo, print_json
from trainer.errors import UserError

if TYPE_CHECKING:
    from trainer.reference.entries import Entry


def keys(
    key: Annotated[
        str, typer.Argument(help="A section, recipe or key, such as optim.schedule; else all.")
    ] = "",
    plugin: Plugins = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write all keys as a page, docs/configuration.md.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what the keys of a configuration allow, their defaults and what they mean."""
    from dmtg.plugins import load_plugins
    from dmtg.suggestions import did_you_mean
    from trainer.config.suggestions import suggest_key
    from trainer.reference.entries import entries

    load_plugins(plugin or ())
    if markdown is not None:
        from trainer.reference.page import configuration_page

        with atomic_write(markdown) as file:
            file.write(configuration_page())
        return
    found = [entry for entry in entries() if _matches(entry, key)]
    if not found:
        hint = did_you_mean(key, [entry.path for entry in entries()]) or suggest_key(key)
        raise UserError(f"KEY: found {key!r}, which is no key{hint}")
    if as_json:
        print_json({"keys": [asdict(entry) for entry in found]})
        return
    width = min(100, shutil.get_terminal_size((80, 24)).columns)
    echo("\n".join(line for entry in found for line in _lines(entry, width)))


def _matches(entry: Entry, key: str) -> bool:
    owner = entry.of.rpartition(" ")[2]
    return not key or f"{entry.path}.".startswith(f"{key}.") or key in (owner, entry.of)


def _lines(entry: Entry, width: int) -> list[str]:
    of = f" ({entry.of})" if entry.of else ""
    default = {"": "", "required": "; required"}.get(entry.default, f"; default {entry.default}")
    values = "" if entry.is_section else f": {entry.allowed}{default}"
    head = textwrap.wrap(f"{entry.path}{of}{values}", width, subsequent_indent="  ")
    return [*head, *textwrap.wrap(entry.meaning, width, initial_indent="    ",
                                  subsequent_indent="    ")]  # fmt: skip
