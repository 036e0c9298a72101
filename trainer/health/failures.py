"""End a run that failed: soon, with one message for all processes and an exit code above 0."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress

import torch.distributed as dist

from dmtg.terminal import shown
from trainer.errors import FAILED, explain, first_line, is_configuration_error
from trainer.health.peers import Peers, place
from trainer.health.stop_signals import defer_signals, stop_at_once
from trainer.health.watchdog import current_activity
from trainer.monitoring.status import note_failure

logger = logging.getLogger(__name__)

# Seconds in which a process that failed registers its failure, and a watchdog notices that the
# launcher has ended.
_WAIT_FOR_CAUSE = 3.0
# In which the first process of a node reports the error that all have; when one of them ends, the
# launcher stops it.
_WAIT_FOR_REPORT = 10.0
_LAST_SECONDS = 20.0  # that a process may take to close its files
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
    defer_signals()  # the launcher stops a process when another one fails
    if peers is not None and _lost_contact(error):
        return _report_lost_contact(error, peers)
    explanation = explain(error, current_activity())
    # Before there is a group no process knows which failed first, and one GPU or node may have an
    # error that the others do not have.
    everywhere = is_configuration_error(error)
    reports = _is_first_failure(peers) or (peers is None and not everywhere)
    if reports and not explanation.expected:
        logger.error("%s: unexpected error", explanation.request, exc_info=error)
    if reports:
        _print_error(explanation.message)
    elif peers is None:
        stop_at_once()
        time.sleep(_WAIT_FOR_REPORT)
    return explanation.code


def _report_lost_contact(error: BaseException, peers: Peers) -> int:
    cause = _cause_elsewhere(peers)
    if cause is not None and _is_first_failure(peers):
        at = current_activity()
        _print_error(
            f"lost contact with other ranks at {at}: {shown(f'{cause} ({first_line(error)})')}"
        )
    return FAILED


def fail(message: str, peers: Peers | None) -> None:
    """End this process from any of its threads."""
    defer_signals()
    if _is_first_failure(peers):
        _print_error(message)
    _end(FAILED)


def leave(code: int) -> None:
    """End this process and the loader's workers, which ignore SIGTERM.

    A process that failed as one of several does not return to the interpreter: the destructors of
    the engine and the process group can wait for a process that has ended, and hold the
    interpreter's lock meanwhile, so that no thread could end the process. `os._exit` closes the
    connections at once, which the other processes detect.
    """
    if code and dist.is_available() and dist.is_initialized():
        _end(code)
    if multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for killed workers
    _kill_workers()
    sys.exit(code)


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
        time.sleep(_WAIT_FOR_CAUSE)  # the watchdog ends this process if its launcher has ended
        return f"the rendezvous host does not answer either, {first_line(error)}"


def _is_first_failure(peers: Peers | None) -> bool:
    """Register the failure; without contact the first process of each node counts as the first."""
    if peers is not None:
        try:
            return peers.first_failure()
        except RuntimeError:
            pass
    return os.environ.get("LOCAL_RANK", "0") == "0"


def say_once(message: str, peers: Peers | None) -> None:
    """Print why this process ends, unless another one has said why the run ends."""
    if _is_first_failure(peers):
        _write_error(message)


def _print_error(message: str) -> None:
    note_failure(_write_error(message))


def _write_error(message: str) -> str:
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        message = f"{place()}: {message}"
    with suppress(OSError):  # it is closed, or on a full disk
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # a progress bar may be in this line
        sys.stderr.write(f"{clear}error: {message}\n")
        sys.stderr.flush()
    return message


def _end(code: int) -> None:
    faulthandler.dump_traceback_later(_LAST_SECONDS, exit=True)
    _kill_workers()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _kill_workers() -> None:
    for child in multiprocessing.active_children():  # they have no state to lose
        child.kill()
