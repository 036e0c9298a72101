"""Text for terminals and log files, without credentials and control characters."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from contextlib import suppress
from typing import Any

from dmtg.names import printable
from dmtg.secrets import without_secrets

_formatwarning = warnings.formatwarning


def shown(text: str) -> str:
    """Return text as it may be shown or logged, see `without_secrets` and `printable`."""
    return printable(without_secrets(text))


class ShownFormatter(logging.Formatter):
    """A formatter whose tracebacks are `shown`; `protect_output` cleans the messages."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        if record.exc_text:  # written by the formatter of another handler
            record.exc_text = shown(record.exc_text)
        return super().format(record)

    def formatException(self, ei: Any) -> str:  # noqa: ANN401 - as in the base class
        """Return the lines of a traceback."""
        return shown(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        """Return the lines of a stack."""
        return shown(super().formatStack(stack_info))


class _ShownRecord(logging.LogRecord):
    """A record whose message is `shown`, whichever handler of whichever library formats it."""

    def getMessage(self) -> str:
        return shown(super().getMessage())


def protect_output() -> None:
    """Apply `shown` to all log records and warnings of this process, those of libraries too.

    Processes that are started later, not forked, have to call this themselves.
    """
    logging.setLogRecordFactory(_ShownRecord)
    if logging.lastResort is not None:  # the handler while logging is not set up
        logging.lastResort.setFormatter(ShownFormatter())
    warnings.formatwarning = _format_warning


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    return shown(_formatwarning(message, category, filename, lineno, line))


def discard_output() -> None:
    """Send what is still buffered for standard output nowhere, after its reader has closed it.

    Python would report the broken pipe a second time when it ends.
    """
    with suppress(OSError, ValueError):  # it is not a file, or is closed
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
