"""Errors that end a program with a message, and the one place that explains any error to a user.

`trainer/main.py` and every command of `dmtg` report errors by `explain`.
"""

from __future__ import annotations

import errno
import re
import socket
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass

from data_pipelines.errors import DataError, UnreadableColumnsError
from dmtg.memory import is_out_of_memory
from dmtg.names import shortened
from dmtg.plugins import PluginError, place_in_plugin
from dmtg.terminal import discard_output, shown
from model.errors import BundleError

# Exit code of a run that diverged or lost another process, of a conversion that can read nothing of
# a column, and of a fault of ours.
FAILED = 1
UNUSABLE = 2  # of anything that the user can change
INTERRUPTED = 130
STOPPED = 128  # plus the number of the signal that ended a start
INTERRUPT = "SIGINT"  # the cause of a stop by Ctrl-C
REQUEST = "this is a fault of dmtg, please report it with the traceback"

_PACKAGES = ("accelerate_configs", "data_pipelines", "dmtg", "model", "trainer")
_LONGEST = 160  # characters of the first line of another library's message
# What a disk, a network, a limit or the rights of the user can cause; of errors that name no file.
_OF_SYSTEM = frozenset(
    {
        errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENAMETOOLONG,
        errno.ENFILE, errno.ENODEV, errno.ENOENT, errno.ENOLCK, errno.ENOMEM, errno.ENOSPC,
        errno.ENXIO, errno.EPERM, errno.EPIPE, errno.EROFS, errno.ESTALE,
        errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ECONNABORTED, errno.ECONNREFUSED,
        errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET,
        errno.ENETUNREACH, errno.ETIMEDOUT,
    }
)  # fmt: skip
_NUMBER = re.compile(r"\[Errno (\d+)\]")
_ONE_VALUE = "Expected more than 1 value per channel"
_NOT_DETERMINISTIC = re.compile(r"(\w+) does not have a deterministic implementation")
_WORKER_ERROR = re.compile(r"Caught \w+ in DataLoader worker process")
_WORKER_KILLED = re.compile(r"DataLoader worker \(pid.*\) (?:is killed|exited)")


class UserError(ValueError):
    """The configuration, an argument or a folder is not usable; exit code 2."""


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the last checkpoint is from before. Exit code 1."""


class SaveError(Exception):
    """A checkpoint could not be written; those before it are whole. Exit code 2."""


class Preempted(Exception):
    """The run was asked to stop and has saved; a start with `run.resume=auto` continues it.

    Attributes:
        step: Optimizer steps done.
        cause: `SIGUSR1`, `SIGTERM`, `SIGINT`, `run.max_minutes` or `a callback`, of any rank.
    """

    def __init__(self, step: int, cause: str) -> None:
        stopped = "interrupted by Ctrl-C" if cause == INTERRUPT else f"preempted by {cause}"
        super().__init__(f"{stopped} after step {step}; the run is saved")
        self.step = step
        self.cause = cause


@dataclass(frozen=True)
class Explanation:
    """What an error means to the user.

    Attributes:
        message: What to print after `error: `; it holds no credentials and no control characters.
        code: Exit code.
        request: Who needs the traceback; empty if the user can act on the message.
    """

    message: str
    code: int
    request: str = ""

    @property
    def expected(self) -> bool:
        """Whether the user can act on the message; else it needs a traceback."""
        return not self.request


def explain(error: BaseException, activity: str = "") -> Explanation:
    """Return message and exit code of any error.

    Args:
        error: The error that ends the program.
        activity: What the program was doing, where that is known, as in `step 5, training`.
    """
    at = f" at {activity}" if activity else ""
    if isinstance(error, KeyboardInterrupt):
        return Explanation("interrupted", INTERRUPTED)
    if isinstance(error, NonFiniteLossError):
        return Explanation(
            f"{shown(str(error))}; the checkpoints in run.out are from before", FAILED
        )
    if isinstance(error, UnreadableColumnsError):
        return Explanation(shown(str(error)), FAILED)
    advice = _user_message(error, at)
    if advice is not None:
        return Explanation(shown(advice), UNUSABLE)
    message = shown(f"{type(error).__name__}{at}: {error}")
    return Explanation(message, FAILED, request=shown(_request(error)))


def report_error(error: BaseException) -> int:
    """Print an error that ends a program of one process, and return the exit code.

    A fault of this project, or of a plug-in, comes with its traceback.
    """
    explanation = explain(error)
    if isinstance(error, BrokenPipeError):
        discard_output()
    lines = [f"error: {explanation.message}\n"]
    if not explanation.expected:
        trace = shown("".join(traceback.format_exception(error)))
        lines = [trace, *lines, f"{explanation.request} above\n"]
    with suppress(OSError):  # standard error is closed, too
        sys.stderr.write("".join(lines))
        sys.stderr.flush()
    return explanation.code


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; advice and a stack of C++ frames may follow."""
    return shortened((str(error).splitlines() or [""])[0], _LONGEST)


def is_configuration_error(error: BaseException) -> bool:
    """Return whether every process of a run raises the same error."""
    return isinstance(error, UserError | DataError | BundleError | PluginError | KeyboardInterrupt)


def _user_message(error: BaseException, at: str) -> str | None:
    """Return what to tell the user of an error that a user can cause; None for a fault of ours."""
    text = str(error)
    if is_configuration_error(error) or isinstance(error, SaveError):
        return text
    if is_out_of_memory(error):
        return f"out of memory{at}: {_of_worker(error) or type(error).__name__}"
    if isinstance(error, BrokenPipeError) and error.filename is None:
        return "standard output, or a connection, was closed by its reader"
    if isinstance(error, OSError) and _is_of_system(error):
        reason = error.strerror or _of_worker(error) or type(error).__name__
        return reason if error.filename is None else f"{error.filename}: {reason}"
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] not in _PACKAGES:
        return f"{text}; install the package that is missing" if text else "a package is missing"
    if type(error).__name__ == "SafetensorError":
        return text
    if isinstance(error, ValueError) and _ONE_VALUE in text:
        return (
            f"a batch of one sample{at} leaves batch normalisation one value per channel, which "
            "has no variance: raise data.global_batch above processes x "
            "optim.gradient_accumulation_steps, or data.image_size"
        )
    if isinstance(error, RuntimeError) and (found := _NOT_DETERMINISTIC.search(text)):
        return (
            f"run.deterministic: torch has no deterministic algorithm for {found[1]}{at}; choose "
            "another part of the network (docs/failures.md), or run.deterministic=false"
        )
    if isinstance(error, RuntimeError) and _WORKER_KILLED.search(text):
        return (
            f"a process that reads data was killed{at}, mostly for lack of memory or of shared "
            f"memory (/dev/shm): lower data.workers or data.global_batch ({first_line(error)})"
        )
    return None


def _request(error: BaseException) -> str:
    """Return who needs the traceback of an error that the user cannot act on."""
    place = place_in_plugin(error)
    if place is None:
        return REQUEST
    return (
        f"this is a fault of the plug-in {place.module} or of its use ({place.file}, line "
        f"{place.line}), see the traceback"
    )


def _is_of_system(error: OSError) -> bool:
    """Return whether disk, network, limits or rights caused an error, rather than this program."""
    if error.filename is not None or isinstance(error, (ConnectionError, socket.gaierror)):
        return True
    number = error.errno
    if number is None:  # torch raises an error of a worker again with nothing but its message
        found = _NUMBER.search(_of_worker(error))
        number = None if found is None else int(found[1])
    return number in _OF_SYSTEM


def _of_worker(error: BaseException) -> str:
    """Return the first line of a message; of an error that a worker of the loader raised its last.

    torch raises it again with the worker's traceback as its message.
    """
    text = str(error).rstrip()
    return text.splitlines()[-1] if _WORKER_ERROR.match(text) else first_line(error)
