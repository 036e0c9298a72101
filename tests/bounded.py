"""Attacks on a reader, run in a process of their own, with the memory that they took."""

import resource
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection

import pytest

MEMORY = 200 * 10**6  # bytes that the refusal of a hostile file may take
_SECONDS = 60  # generous for a busy machine: a file that is read as a whole takes far longer


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _run(attack: Callable[[], object], answer: Connection) -> None:
    before = _peak()
    try:
        attack()
        error = "nothing was raised"
    except ValueError as raised:  # DataError, and what is none
        error = f"{type(raised).__name__}: {raised}"
    answer.send((error, _peak() - before))


def refusal(attack: Callable[[], object]) -> str:
    """Return the message of the DataError that the attack ends with, within the memory allowed."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(attack, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(_SECONDS):
            pytest.fail(f"not refused within {_SECONDS} s")
        error, taken = receiver.recv()
    finally:
        process.kill()
        process.join()
    assert taken < MEMORY, f"{taken} bytes were taken to refuse: {error}"
    kind, _, message = error.partition(": ")
    assert kind == "DataError", error
    return message
