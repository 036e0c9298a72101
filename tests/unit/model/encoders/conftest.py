import socket

import pytest
from huggingface_hub import constants


@pytest.fixture
def no_network(monkeypatch):
    """Fail a test that opens a connection, also if what it calls goes on without one."""
    attempts = []

    def refuse(*arguments, **_):
        attempts.append(arguments)
        raise OSError("a socket was opened")

    for owner, name in (
        (socket.socket, "connect"),
        (socket, "getaddrinfo"),
        (socket, "create_connection"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    yield
    assert attempts == []


@pytest.fixture
def hub_cache(monkeypatch, tmp_path, request):
    """An empty cache of the hub, which is offline."""
    request.getfixturevalue("no_network")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"
