"""Batches on the device; the streams of a GPU are played by objects that record their calls."""

from types import SimpleNamespace

import pytest
import torch

from data_pipelines.reading import transfer
from data_pipelines.reading.collate import Batch
from data_pipelines.reading.transfer import on_device


def batch(number):
    return Batch(
        tasks=("a", "b"), scalar_tasks=("a",), images=torch.full((2, 3, 4, 4), number),
        scalars=torch.zeros(1, 2), dense={"b": torch.zeros(2, 1, 4, 4)},
        valid_rows=torch.ones(2, 2, dtype=torch.bool), keys=("x", "y"), damage=(f"of {number}",),
    )  # fmt: skip


def test_batches_come_in_order_and_only_when_they_are_asked_for():
    read = []
    batches = (read.append(n) or batch(n) for n in range(3))
    for expected, moved in enumerate(on_device(batches, torch.device("cpu"))):
        assert read == list(range(expected + 1))
        assert int(moved.images[0, 0, 0, 0]) == expected and moved.damage == (f"of {expected}",)


@pytest.fixture
def _no_streams():
    transfer._copy_stream.cache_clear()
    yield
    transfer._copy_stream.cache_clear()


class _Stream:
    def __init__(self, name, calls):
        self.name, self._calls = name, calls

    def __enter__(self):
        self._calls.append(f"enter {self.name}")

    def __exit__(self, *_):
        self._calls.append(f"leave {self.name}")

    def wait_stream(self, other):
        self._calls.append(f"{self.name} waits for {other.name}")


@pytest.mark.usefixtures("_no_streams")
def test_a_gpu_copies_pinned_batches_on_a_stream_of_its_own(monkeypatch):
    calls = []
    copies, compute = _Stream("copies", calls), _Stream("compute", calls)
    streams = SimpleNamespace(
        Stream=lambda _: calls.append("new stream") or copies,
        stream=lambda stream: stream,
        current_stream=lambda _: compute,
    )
    monkeypatch.setattr(torch, "cuda", streams)
    monkeypatch.setattr(Batch, "pin_memory", lambda self: calls.append("pin") or self)
    monkeypatch.setattr(Batch, "to", lambda self, device: calls.append(f"to {device}") or self)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda _, stream: calls.append(f"record {stream.name}")
    )
    batches = on_device([batch(0), batch(1)], torch.device("cuda"))
    once = [
        "pin", "enter copies", "to cuda", "leave copies", "compute waits for copies",
        *["record compute"] * 4,
    ]  # fmt: skip
    next(batches)
    assert calls == ["new stream", *once]
    next(batches)
    assert calls == ["new stream", *once * 2]
    with pytest.raises(StopIteration):
        next(batches)
    list(on_device([batch(2)], torch.device("cuda")))
    assert calls == ["new stream", *once * 3], "later loaders use the same stream"
