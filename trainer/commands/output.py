"""How the commands of `dmtg` print: names and messages of others cannot control the terminal."""

from __future__ import annotations

import sys
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmtg.secrets import without_secrets_in
from dmtg.terminal import discard_output, shown
from trainer.errors import UserError
from trainer.json_file import to_json

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 80  # columns without a terminal
_COMMANDS = ("next", "then")  # results that are commands: one line, to be copied

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
        line = f"{name}: {_short(value)}"
        echo(line if name in _COMMANDS else wrapped(line))


def wrapped(text: str, first: str = "", others: str = "  ") -> str:
    """Return a line of text in lines of 80 columns, broken between words only.

    Args:
        text: The line.
        first: Indentation of the first line.
        others: Indentation of the other lines.
    """
    return fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _short(value: Any) -> Any:  # noqa: ANN401 - anything that JSON can hold
    """Return a value whose floats have six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _short(part) for key, part in value.items()}
    return [_short(part) for part in value] if isinstance(value, list) else value


def print_json(values: dict[str, Any]) -> None:
    """Print one JSON object on one line; numbers that are not finite become null."""
    _write(to_json(without_secrets_in(values)))


def table_console(width: int = _WIDTH, *, highlight: bool = True) -> Console:
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
