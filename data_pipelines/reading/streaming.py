"""Tars that cannot be indexed, read from front to back over and over in a random order."""

from __future__ import annotations

import logging
import random
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO

import fsspec
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset import ResampledShards
from webdataset.filters import shuffle
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys, tar_file_iterator

from data_pipelines.errors import DataError, SourceError
from data_pipelines.reading.collate import Batch, Collate
from data_pipelines.reading.dataset import OnError
from data_pipelines.reading.fields import LabelRequest, resolve_labels
from data_pipelines.reading.loader import ignore_sigterm
from data_pipelines.reading.samples import Sample, SampleBuilder
from data_pipelines.shards import remote
from data_pipelines.shards.manifest import Manifest
from data_pipelines.transforms import Geometry

logger = logging.getLogger(__name__)

SHUFFLED = 500  # samples, still encoded, among which the next one is drawn
_FAULT = "__fault__"
_END_MARK = bytes(1024)
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class TarStream(IterableDataset[Sample]):
    """Endless samples; each process and each of its workers draws tars on its own, with repeats.

    Args:
        urls: Tars, as paths or fsspec URLs.
        builder: Makes the samples.
        seed: What the order and the augmentation depend on, beside the worker.
        on_error: What damage does, as in `ShardDataset`; the rest of a damaged tar is left out.
        retry_seconds: For how long other tars are tried while none can be read.
    """

    def __init__(
        self,
        urls: Sequence[str],
        builder: SampleBuilder,
        seed: Sequence[int],
        on_error: OnError = "stop",
        retry_seconds: float = remote.RETRY_SECONDS,
    ) -> None:
        self.urls = [remote.check_url(url) for url in urls]
        self.builder = builder
        self.seed = tuple(seed)
        self.on_error = on_error
        self.retry_seconds = retry_seconds

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        rng = np.random.default_rng([*self.seed, worker.id if worker else 0])
        shards = ResampledShards(
            self.urls, seed=int(rng.integers(2**31)), worker_seed=lambda: 0, deterministic=True
        )
        mixed = shuffle(SHUFFLED, initial=SHUFFLED, rng=random.Random(int(rng.integers(2**31))))
        for members in mixed(self._encoded(shards)):
            yield self._sample(members, rng)

    def _encoded(self, shards: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
        """Samples as webdataset has them: suffix to bytes, beside `__key__` and `__url__`."""
        patience = remote.Patience(self.retry_seconds)
        for shard in shards:
            url = shard["url"]
            try:
                for sample in group_by_keys(_members(url), lcase=False):
                    patience = remote.Patience(self.retry_seconds)
                    yield sample
            except DataError as error:
                if self.on_error == "stop":
                    raise
                yield {_FAULT: str(error)}
            except Exception as error:  # what a network file system raises is its own affair
                wait = patience.next_wait()
                if wait is None:
                    raise SourceError(
                        f"{url}: failed, as {patience.failures - 1} tars before in "
                        f"{self.retry_seconds:g} s: {error!r}"
                    ) from error
                logger.warning("%s: %r; going on with another tar", url, error)
                time.sleep(wait)

    def _sample(self, members: dict[str, Any], rng: np.random.Generator) -> Sample:
        if _FAULT in members:
            return self.builder.blank(members[_FAULT])
        wanted = {name: members[name] for name in self.builder.members if name in members}
        try:
            return self.builder.build(members["__key__"], wanted, rng)
        except DataError as error:
            message = f"{members['__url__']}: sample {members['__key__']}: {error}"
            if self.on_error == "stop":
                raise DataError(message) from error
            return self.builder.blank(message)


def stream_batches(
    pattern: str,
    manifest: Manifest,
    requests: Sequence[LabelRequest],
    geometry: Geometry,
    *,
    seed: int,
    global_batch: int,
    num_steps: int,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    start_step: int = 0,
    workers: int = 0,
    on_error: OnError = "stop",
    retry_seconds: float = remote.RETRY_SECONDS,
) -> Iterator[Batch]:
    """Micro-batches of one process from tars without a manifest of their own.

    Neither resuming nor another number of processes or workers gives the same samples.

    Args:
        pattern: The tars; `{000..099}` stands for many.
        manifest: Describes the fields; its shards are not read.
        requests: What each task reads.
        geometry: What is done to the pictures.
        seed: Seed of order and augmentation.
        global_batch: Samples of an optimizer step, over all processes and micro-batches.
        num_steps: Optimizer steps of the whole run.
        rank: This process.
        world_size: Number of processes.
        accumulation: Micro-batches of a process in one optimizer step.
        start_step: Optimizer steps already done.
        workers: Reading processes; 0 reads in this one.
        on_error: What damage does, as in `TarStream`.
        retry_seconds: As `TarStream` takes it.

    Raises:
        DataError: The requests cannot be met, or the batch does not divide as needed.
    """
    parts = world_size * accumulation
    if global_batch % parts:
        raise DataError(
            f"data.global_batch: {global_batch} must be a multiple of {world_size} processes x "
            f"{accumulation} accumulated batches = {parts}"
        )
    labels = resolve_labels(manifest, None, requests, flip=geometry.flip)
    builder = SampleBuilder(manifest.fields[manifest.image].member, labels, geometry)
    urls = expand_urls(remote.check_url(pattern))
    logger.warning(
        "%s: %d tars are read as a stream: their order is random with repeats, and a resumed run "
        "does not see the samples that it would have seen",
        pattern,
        len(urls),
    )
    loader = DataLoader(
        TarStream(urls, builder, (seed, rank, start_step), on_error, retry_seconds),
        batch_size=global_batch // parts,
        num_workers=workers,
        collate_fn=Collate(labels),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=ignore_sigterm,
    )
    return islice(loader, (num_steps - start_step) * accumulation)


class _Watched:
    """A stream that remembers its last bytes: a tar cut between two members ends without them."""

    def __init__(self, raw: BinaryIO, url: str) -> None:
        self._raw, self._url = raw, url
        self.tail = b""

    def read(self, size: int) -> bytes:
        data = self._raw.read(size)
        if not self.tail and data.startswith(_COMPRESSED):
            raise DataError(f"{self._url}: a compressed tar; allowed are plain ones")
        self.tail = (self.tail + data)[-len(_END_MARK) :]
        return data


def _members(url: str) -> Iterator[dict[str, Any]]:
    """The members of one tar, as webdataset has them.

    Raises:
        DataError: It is missing or damaged.
    """
    try:
        with fsspec.open(url, "rb") as raw:
            stream = _Watched(raw, url)
            for member in tar_file_iterator(stream):
                yield {**member, "__url__": url}
            while stream.read(2**16):
                pass
    except FileNotFoundError as error:
        if not isinstance(error.__cause__, FileNotFoundError | None):
            raise error.__cause__ from None  # fsspec says so of any answer to its first question
        raise DataError(f"{url}: missing") from error
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{url}: damaged tar: {error}") from error
    if stream.tail != _END_MARK:
        raise DataError(f"{url}: truncated tar: it has no end-of-archive mark")
