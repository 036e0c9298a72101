"""Which process reports a failure, its message, and the exit code."""

import errno
import logging
import socket

import pytest
import torch
import torch.distributed as dist

from data_pipelines.errors import DataError
from trainer.errors import NonFiniteLossError, SaveError, UserError
from trainer.health import failures
from trainer.health.failures import fail, leave, report
from trainer.health.watchdog import report_progress

HOST = socket.gethostname()


class Peers:
    """The other processes, as a test wants them."""

    def __init__(self, *, first=True, failed=False, missing="rank 1 is missing", error=None):
        self.first, self.failed, self.missing, self.error = first, failed, missing, error

    def first_failure(self):
        if self.error:
            raise self.error
        return self.first

    def wait_for_failure(self, _seconds):
        if self.error:
            raise self.error
        return self.failed

    def find_missing(self):
        return self.missing


@pytest.fixture
def rank_1_of_2(monkeypatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(failures, "_WAIT_FOR_REPORT", 0.0)
    monkeypatch.setattr(failures, "_WAIT_FOR_CAUSE", 0.0)
    report_progress("step 5, training")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("run.out: not a folder"), 2, "run.out: not a folder"),
        (DataError("shard: damaged"), 2, "shard: damaged"),
        (NonFiniteLossError("NaN"), 1, "NaN; the checkpoints in run.out are from before"),
        (SaveError("checkpoint x cannot be written"), 2, "checkpoint x cannot be written"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left", "/a/b"), 2, "/a/b: No space left"),
        (torch.OutOfMemoryError("8 GiB\nmore"), 2, "out of memory at step 7, training: 8 GiB"),
    ],
)
def test_the_message_of_a_single_process(error, code, message, capsys, caplog):
    report_progress("step 7, training")
    assert report(error, None) == code
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not caplog.records


def test_an_unexpected_error_comes_with_its_traceback(capsys, caplog):
    report_progress("step 7, training")
    with caplog.at_level(logging.ERROR):
        try:
            raise KeyError("surprise")
        except KeyError as error:
            assert report(error, None) == 1
    assert capsys.readouterr().err == "error: KeyError at step 7, training: 'surprise'\n"
    assert "test_an_unexpected_error_comes_with_its_traceback" in caplog.text
    assert "this is a fault of dmtg, please report it with the traceback" in caplog.text


@pytest.mark.usefixtures("rank_1_of_2")
def test_the_first_names_rank_and_node(capsys):
    assert report(DataError("shard: damaged"), Peers()) == 2
    assert capsys.readouterr().err == f"error: rank 1 of 2 on {HOST}: shard: damaged\n"


@pytest.mark.usefixtures("rank_1_of_2")
@pytest.mark.parametrize("error", [UserError("agreed"), RuntimeError("unexpected")])
def test_all_others_are_silent(error, capsys, caplog):
    assert report(error, Peers(first=False)) == (2 if isinstance(error, UserError) else 1)
    assert capsys.readouterr().err == "" and not caplog.records


CONTACT = [
    RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1\nat x"),
    RuntimeError("Timed out waiting 12000ms for recv operation to complete"),
    dist.DistBackendError("NCCL communicator was aborted"),
    dist.DistNetworkError("The client socket has failed"),
    ConnectionResetError(104, "Connection reset by peer"),
]


@pytest.mark.usefixtures("rank_1_of_2")
@pytest.mark.parametrize("error", CONTACT, ids=lambda error: type(error).__name__)
def test_lost_contact_is_explained_by_whoever_caused_it(error, capsys, caplog):
    assert report(error, Peers(failed=True, first=True)) == 1
    assert capsys.readouterr().err == "" and not caplog.records


@pytest.mark.usefixtures("rank_1_of_2")
@pytest.mark.parametrize("error", CONTACT, ids=lambda error: type(error).__name__)
def test_lost_contact_that_nobody_explains(error, capsys, caplog):
    assert report(error, Peers()) == 1
    text = capsys.readouterr().err
    start = f"error: rank 1 of 2 on {HOST}: lost contact with other ranks at step 5, training: "
    assert text.startswith(start + "rank 1 is missing (") and text.count("\n") == 1
    assert not caplog.records
    assert report(error, Peers(first=False)) == 1 and capsys.readouterr().err == ""


@pytest.mark.usefixtures("rank_1_of_2")
def test_without_the_store_the_first_of_each_node_reports(capsys, monkeypatch):
    gone = Peers(error=dist.DistNetworkError("Broken pipe"))
    assert report(CONTACT[1], gone) == 1
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert report(CONTACT[1], gone) == 1
    expected = "the rendezvous host does not answer either, Broken pipe (Timed out waiting"
    assert expected in capsys.readouterr().err


@pytest.mark.usefixtures("rank_1_of_2")
def test_without_the_store_the_watchdog_may_report_first(capsys, monkeypatch):
    """It sees that the launcher, which held the store, has ended, and ends this process."""

    def end_process(_seconds):
        raise SystemExit

    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(failures.time, "sleep", end_process)
    with pytest.raises(SystemExit):
        report(CONTACT[0], Peers(error=dist.DistNetworkError("Broken pipe")))
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("rank_1_of_2")
def test_before_there_is_a_group_an_unexpected_error_of_any_rank_is_said(capsys, caplog):
    """One of a node's GPUs may be missing; what all ranks see is said once."""
    assert report(RuntimeError("CUDA error: invalid device ordinal"), None) == 1
    text = capsys.readouterr().err
    assert text.startswith(f"error: rank 1 of 2 on {HOST}: RuntimeError")
    assert "invalid device ordinal" in text and caplog.records
    assert report(UserError("run.steps: unknown"), None) == 2
    assert capsys.readouterr().err == ""


def test_a_timeout_of_a_process_alone_is_no_lost_contact(capsys):
    assert report(RuntimeError("the socket timed out"), None) == 1
    assert "lost contact" not in capsys.readouterr().err


@pytest.fixture
def exits(monkeypatch):
    codes = []
    monkeypatch.setattr(failures.os, "_exit", codes.append)
    monkeypatch.setattr(failures.faulthandler, "dump_traceback_later", lambda *_, **__: None)
    monkeypatch.setattr(failures.logging, "shutdown", lambda: None)
    return codes


@pytest.mark.usefixtures("rank_1_of_2")
def test_a_thread_ends_the_process(exits, capsys):
    fail("the launcher (process 7) has ended", Peers())
    assert exits == [1]
    expected = f"error: rank 1 of 2 on {HOST}: the launcher (process 7) has ended\n"
    assert capsys.readouterr().err == expected
    fail("another rank has failed", Peers(first=False))
    assert exits == [1, 1] and capsys.readouterr().err == ""


def test_only_a_failure_of_several_leaves_the_interpreter_at_once(exits, monkeypatch):
    for code in (0, 2):
        with pytest.raises(SystemExit) as end:
            leave(code)
        assert end.value.code == code
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with pytest.raises(SystemExit):
        leave(0)
    assert exits == []
    with pytest.raises(SystemExit):  # the fake _exit returns
        leave(2)
    assert exits == [2]
