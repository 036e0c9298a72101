"""How the commands of `dmtg` print: names and messages of others cannot control the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmtg.secrets import without_secrets_in
from dmtg.terminal import discard_output, shown
from trainer.errors import UserError
from trainer.json_file import to_json

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def echo(text: str) -> None:
    """Print text as it may be shown.

    Raises:
        UserError: The reader of standard output has closed it.
    """
    _write(shown(text))


def finish(as_json: bool, values: dict[str, Any]) -> None:
    """Print the results, one per line or as one JSON object."""
    if as_json:
        print_json(values)
        return
    for name, value in values.items():
        echo(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")


def print_json(values: dict[str, Any]) -> None:
    """Print one JSON object on one line; numbers that are not finite become null."""
    _write(to_json(without_secrets_in(values)))


def table_console(width: int = 80, *, highlight: bool = True) -> Console:
    """Return the console for tables: as wide as the terminal, `width` columns without one.

    Text is printed as it may be shown. A name in it still needs `rich.markup.escape`.
    """
    from rich.console import Console
    from rich.text import Text

    class SafeConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401
            return super().render_str(shown(text), **{**options, "emoji": False})

        def on_broken_pipe(self) -> None:
            raise _closed()

    return SafeConsole(width=None if sys.stdout.isatty() else width, highlight=highlight)


def _write(text: str) -> None:
    # typer would end the program silently, with exit code 1.
    try:
        typer.echo(text)
    except BrokenPipeError:
        raise _closed() from None


def _closed() -> UserError:
    discard_output()
    return UserError("standard output was closed by its reader")
