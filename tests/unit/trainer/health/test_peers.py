"""Processes that see each other through a real store, from threads of this one."""

import socket
import threading
import time

import pytest
import torch.distributed as dist

from trainer.health import peers
from trainer.health.peers import Peers

HOST = socket.gethostname()


@pytest.fixture
def store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True)


@pytest.fixture
def ranks(store, monkeypatch):
    """Three ranks; heartbeats are compared after a moment."""
    monkeypatch.setattr(peers, "_SILENT_SECONDS", 0.1)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    made = []
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        made.append(Peers())
    return made


@pytest.fixture
def alive():
    """Lets ranks send heartbeats while the test lasts."""
    stop, threads = threading.Event(), []

    def run(rank: Peers, doing: str) -> None:
        rank.send_heartbeat(doing)

        def go_on() -> None:
            while not stop.wait(0.02):
                rank.send_heartbeat(doing)

        threads.append(threading.Thread(target=go_on))
        threads[-1].start()

    yield run
    stop.set()
    for thread in threads:
        thread.join()


def test_only_one_process_is_the_first_to_fail(ranks):
    assert not ranks[0].wait_for_failure(0.0)
    assert [ranks[1].first_failure(), ranks[0].first_failure(), ranks[2].first_failure()] == [
        True,
        False,
        False,
    ]
    assert ranks[0].wait_for_failure(0.0)


def test_a_failure_is_read_with_the_next_heartbeat(ranks):
    ranks[0].send_heartbeat("step 1")
    assert ranks[0].failed_since is None
    ranks[2].first_failure()
    before = time.monotonic()
    ranks[0].send_heartbeat("step 1")
    noticed = ranks[0].failed_since
    assert before <= noticed <= time.monotonic()
    ranks[0].send_heartbeat("step 1")
    assert ranks[0].failed_since == noticed


def test_a_rank_without_heartbeats(ranks, alive):
    alive(ranks[0], "step 5, training")
    alive(ranks[1], "step 5, training")
    ranks[2].send_heartbeat("step 4, saving")
    expected = f"no heartbeat from rank 2 on {HOST} last seen at step 4, saving"
    assert ranks[0].find_missing() == expected


def test_who_never_came(ranks, alive):
    alive(ranks[0], "starting")
    alive(ranks[2], "starting")
    assert ranks[0].find_missing() == "no heartbeat from rank 1"


def test_who_does_something_else(ranks, alive):
    for rank, doing in enumerate(("training", "reading data", "training")):
        alive(ranks[rank], f"step 5, {doing}")
    assert ranks[0].find_missing() == (
        f"this rank was at step 5, training, rank 1 on {HOST} at step 5, reading data"
    )


def test_all_are_there(ranks, alive):
    for rank in ranks:
        alive(rank, "step 5, training")
    assert ranks[1].find_missing() == "all ranks send heartbeats"


def test_a_long_list_is_cut(ranks):
    ranks[0]._world_size = 9
    ranks[0].send_heartbeat("step 5")
    silent = ranks[0].find_missing()
    assert silent.startswith("no heartbeat from rank 1, rank 2, rank 3, rank 4 and 4 more")


def test_a_store_that_swallows_requests(ranks, monkeypatch):
    """As where the network is cut: no call waits longer than it says."""
    monkeypatch.setattr(peers, "_STORE_SECONDS", 0.1)
    held = threading.Event()

    class Silent:
        def __getattr__(self, name):
            held.wait(30)
            raise dist.DistNetworkError("gone")

    ranks[0]._store = Silent()
    for ask in (
        ranks[0].first_failure,
        lambda: ranks[0].wait_for_failure(1.0),
        ranks[0].find_missing,
    ):
        before = time.monotonic()
        with pytest.raises(dist.DistStoreError, match=r"no answer in 0\.1 s"):
            ask()
        assert time.monotonic() - before < 5
    held.set()


def test_a_store_that_is_gone(ranks):
    class Gone:
        def __getattr__(self, name):
            raise dist.DistNetworkError("Broken pipe")

    ranks[0]._store = Gone()
    with pytest.raises(dist.DistNetworkError, match="Broken pipe"):
        ranks[0].first_failure()
