"""How a run that failed ends: soon, with one message for all processes and a code above 0."""

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
from trainer.health.watchdog import doing, first_line
from trainer.monitoring.status import note_failure

logger = logging.getLogger(__name__)

_WAIT_FOR_CAUSE = 3.0  # seconds in which a process that failed will have said why
_LAST_SECONDS = 20.0  # that a process may take to close its files
_INTERRUPTED = 130
# How gloo, NCCL and the store speak of a process that is gone, late or out of reach.
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
    """Say once, of all processes, what happened.

    A process whose partner has failed does not speak: its error is a consequence. If the partner
    could not say why, because it was killed, stopped or cut off, whoever notices first does.

    Returns:
        The exit code.
    """
    message, code, expected = _explain(error)
    lost = peers is not None and _lost_contact(error)
    if peers is not None and lost:
        cause = _cause_elsewhere(peers)
        if cause is None:
            return 1
        message = f"lost contact with other ranks at {doing()}: {cause} ({first_line(error)})"
    speaks = _claims(peers)
    # Before the group is made nobody knows who failed first, and one GPU may have its own error.
    speaks = speaks or (peers is None and not expected)
    if speaks and not expected and not lost:
        logger.error("this is not an error that the program expects", exc_info=error)
    if speaks:
        _say(message)
    return code


def fail(message: str, peers: Peers | None) -> None:
    """End this process from any of its threads."""
    if _claims(peers):
        _say(message)
    _end(1)


def leave(code: int) -> None:
    """End this process, and the loader's workers, which do not listen to SIGTERM.

    A process that failed as one of several does not return to the interpreter. What Python would
    do at its end, the destruction of the engine's and the group's objects, can wait for a process
    that is gone, and holds the interpreter's lock meanwhile, so that no thread could put an end to
    it. The system closes the connections at once, and the others notice.
    """
    if code and dist.is_available() and dist.is_initialized():
        _end(code)
    _kill_workers()
    sys.exit(code)


def _explain(error: BaseException) -> tuple[str, int, bool]:
    """Message, exit code, and whether the message says all."""
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
        return f"out of memory at {doing()}: {first_line(error)}", 1, True
    return f"{type(error).__name__} at {doing()}: {error}", 1, False


def _lost_contact(error: BaseException) -> bool:
    """Whether an error is a collective's, or the store's."""
    if isinstance(error, dist.DistError | ConnectionError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _CONTACT)


def _cause_elsewhere(peers: Peers) -> str | None:
    """Why contact was lost; None if the process that failed says so itself."""
    try:
        return None if peers.wait_for_failure(_WAIT_FOR_CAUSE) else peers.find_missing()
    except RuntimeError as error:
        return f"the rendezvous host does not answer either, {first_line(error)}"


def _claims(peers: Peers | None) -> bool:
    """Whether this process is the one that speaks; without contact each node's first does."""
    if peers is not None:
        try:
            return peers.claim()
        except RuntimeError:
            pass
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _say(message: str) -> None:
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
