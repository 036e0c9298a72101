"""Batches on a device, copied there while it works on the batches before."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import torch

from data_pipelines.reading.collate import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on the device.

    On a GPU the copies have a stream of their own. The host submits the work of a batch without
    waiting for it, so that the next batch is copied in the meantime.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copies = _copy_stream(device)
    for batch in batches:
        # Pageable memory would be copied with a wait; memory that is pinned is left as it is.
        pinned = batch.pin_memory()
        with torch.cuda.stream(copies):
            copied = pinned.to(device)
        stream = torch.cuda.current_stream(device)
        stream.wait_stream(copies)
        for tensor in (copied.images, copied.scalars, copied.valid_rows, *copied.dense.values()):
            # Its memory belongs to the other stream, which must not reuse it before this one.
            tensor.record_stream(stream)
        yield copied


@functools.cache  # the memory that the allocator keeps for one stream cannot be used by another
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
