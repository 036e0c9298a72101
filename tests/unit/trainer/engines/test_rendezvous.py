from datetime import timedelta

import pytest
from torch.distributed import TCPStore
from torch.distributed import rendezvous as meet

from trainer.engines.rendezvous import URL


@pytest.fixture
def launcher_store(monkeypatch):
    """The store that a launcher keeps over restarts, and what it tells its workers."""
    store = TCPStore("127.0.0.1", 0, is_master=True)
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "RANK": 1, "WORLD_SIZE": 2}
    for name, value in {**settings, "TORCHELASTIC_USE_AGENT_STORE": True}.items():
        monkeypatch.setenv(name, str(value))
    yield store


@pytest.mark.usefixtures("launcher_store")
def test_a_restart_finds_nothing_of_the_start_before(monkeypatch):
    stores = []
    for restart in (None, "0", "1"):
        if restart is not None:
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restart)
        store, rank, world_size = next(iter(meet(URL, timeout=timedelta(seconds=5))))
        assert (rank, world_size) == (1, 2)
        stores.append(store)
    stores[0].set("address", "of a process that is gone")
    assert stores[1].check(["address"]), "without restarts it is the first start"
    assert not stores[2].check(["address"])
