"""End a run that failed: soon, with one message for all processes and an exit code above 0."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import sys

import torch
import torch.distributed as dist

from data_pipelines.errors import DataError
from dmtg.plugins import PluginError
from trainer.errors import NonFiniteLossError, SaveError, UserError
from trainer.health.peers import Peers, place
from trainer.health.watchdog import current_activity, first_line
from trainer.monitoring.status import note_failure

logger = logging.getLogger(__name__)

_WAIT_FOR_CAUSE = 3.0  # seconds in which a process that failed registers its failure
_LAST_SECONDS = 20.0  # that a process may take to close its files
_INTERRUPTED = 130
# Parts of the messages of gloo, NCCL and the store when a process has ended or is out of reach.
_CONTACT = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "no route to host",
    "timed out",
    "timeout",
    "gloo",
    "nccl",
    "socket",
)


def report(error: BaseException, peers: Peers | None) -> int:
    """Print the reason of a failure once for all processes, and return the exit code.

    The first process to fail prints it. A process that only lost contact prints nothing if another
    has registered its failure, since its error is a consequence. If none has, because the process
    was killed, stopped or cut off, the first that lost contact reports which processes are missing.
    """
    message, code, expected = _explain(error)
    lost = peers is not None and _lost_contact(error)
    if peers is not None and lost:
        cause = _cause_elsewhere(peers)
        if cause is None:
            return 1
        at = current_activity()
        message = f"lost contact with other ranks at {at}: {cause} ({first_line(error)})"
    # Before there is a group no process knows which failed first, and one GPU may have an error
    # that the others do not have.
    reports = _is_first_failure(peers) or (peers is None and not expected)
    if reports and not expected and not lost:
        logger.error("unexpected error", exc_info=error)
    if reports:
        _print_error(message)
    return code


def fail(message: str, peers: Peers | None) -> None:
    """End this process from any of its threads."""
    if _is_first_failure(peers):
        _print_error(message)
    _end(1)


def leave(code: int) -> None:
    """End this process and the loader's workers, which ignore SIGTERM.

    A process that failed as one of several does not return to the interpreter: the destructors of
    the engine and the process group can wait for a process that has ended, and hold the
    interpreter's lock meanwhile, so that no thread could end the process. `os._exit` closes the
    connections at once, which the other processes detect.
    """
    if code and dist.is_available() and dist.is_initialized():
        _end(code)
    _kill_workers()
    sys.exit(code)


def _explain(error: BaseException) -> tuple[str, int, bool]:
    """Return message, exit code, and whether the error is expected, so needs no traceback."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", _INTERRUPTED, True
    if isinstance(error, UserError | DataError | PluginError):
        return str(error), 2, True
    if isinstance(error, NonFiniteLossError):
        return f"{error}; the checkpoints in run.out are from before", 1, True
    if isinstance(error, SaveError):
        return str(error), 1, True
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", 1, True
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory at {current_activity()}: {first_line(error)}", 1, True
    return f"{type(error).__name__} at {current_activity()}: {error}", 1, False


def _lost_contact(error: BaseException) -> bool:
    """Return whether an error comes from a collective or from the store."""
    if isinstance(error, dist.DistError | ConnectionError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _CONTACT)


def _cause_elsewhere(peers: Peers) -> str | None:
    """Return why contact was lost; None if the process that failed reports it."""
    try:
        return None if peers.wait_for_failure(_WAIT_FOR_CAUSE) else peers.find_missing()
    except RuntimeError as error:
        return f"the rendezvous host does not answer either, {first_line(error)}"


def _is_first_failure(peers: Peers | None) -> bool:
    """Register the failure; without contact the first process of each node counts as the first."""
    if peers is not None:
        try:
            return peers.first_failure()
        except RuntimeError:
            pass
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _print_error(message: str) -> None:
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        message = f"{place()}: {message}"
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    note_failure(message)


def _end(code: int) -> None:
    faulthandler.dump_traceback_later(_LAST_SECONDS, exit=True)
    _kill_workers()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _kill_workers() -> None:
    for child in multiprocessing.active_children():  # they have no state to lose
        child.kill()
