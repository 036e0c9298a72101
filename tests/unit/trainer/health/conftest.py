import pytest

from trainer.health.stop_signals import received


@pytest.fixture(autouse=True)
def nothing_received():
    received.clear()
    yield
    received.clear()
