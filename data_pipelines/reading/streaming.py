"""Sequential reading of tars that cannot be indexed, repeatedly and in random order."""

from __future__ import annotations

import logging
import random
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data_pipelines.errors import DataError, SourceError
from data_pipelines.reading.collate import Batch, Collate
from data_pipelines.reading.dataset import OnError
from data_pipelines.reading.fields import LabelRequest, resolve_labels
from data_pipelines.reading.loader import start_worker
from data_pipelines.reading.samples import Sample, SampleBuilder
from data_pipelines.shards import remote
from data_pipelines.shards.manifest import Manifest
from data_pipelines.transforms import Geometry

if TYPE_CHECKING:
    from tenacity import Retrying

logger = logging.getLogger(__name__)

SHUFFLE_BUFFER = 500  # encoded samples from which the next one is drawn
_DAMAGE = "__damage__"
_END_MARK = bytes(1024)
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class TarStream(IterableDataset[Sample]):
    """Endless samples; each worker of each process draws tars independently, with replacement.

    Args:
        urls: Tars, as paths or fsspec URLs.
        builder: Builds the samples.
        seed: Seed of the order and the augmentation; combined with the worker's number.
        on_error: Action for damage, as in `ShardDataset`; the rest of a damaged tar is skipped.
        retry_seconds: How long other tars are tried while every attempt to read one fails.
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
        from webdataset import ResampledShards
        from webdataset.filters import shuffle

        worker = get_worker_info()
        rng = np.random.default_rng([*self.seed, worker.id if worker else 0])
        shards = ResampledShards(
            self.urls, seed=int(rng.integers(2**31)), worker_seed=lambda: 0, deterministic=True
        )
        shuffle_seed = int(rng.integers(2**31))
        shuffled = shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, rng=random.Random(shuffle_seed))
        for members in shuffled(self._encoded(shard["url"] for shard in shards)):
            yield self._sample(members, rng)

    def _encoded(self, urls: Iterator[str]) -> Iterator[dict[str, Any]]:
        """Yield samples as webdataset does: suffix to bytes, with `__key__` and `__url__`."""
        reader = _TarReader(urls)
        deadline = remote.FailureDeadline(self.retry_seconds)
        read = self._retrying(deadline, reader)
        while True:
            sample = self._next(read, reader)
            if _DAMAGE not in sample:
                deadline.reset()
            yield sample

    def _next(self, read: Retrying, reader: _TarReader) -> dict[str, Any]:
        try:
            return read(reader.next_sample)
        except SourceError:
            raise
        except DataError as error:
            if self.on_error == "stop":
                raise
            return {_DAMAGE: str(error)}

    def _retrying(self, deadline: remote.FailureDeadline, reader: _TarReader) -> Retrying:
        def log(error: BaseException, _wait: float) -> None:
            logger.warning("%s: %r; going on with another tar", reader.url, error)

        def give_up(error: BaseException) -> SourceError:
            return SourceError(
                f"{reader.url}: failed, as {deadline.failures - 1} tars before in "
                f"{self.retry_seconds:g} s: {error!r}"
            )

        return remote.build_retrying(deadline, log=log, give_up=give_up)

    def _sample(self, members: dict[str, Any], rng: np.random.Generator) -> Sample:
        if _DAMAGE in members:
            return self.builder.blank(members[_DAMAGE])
        wanted = {name: members[name] for name in self.builder.members if name in members}
        try:
            return self.builder.build(members["__key__"], wanted, rng)
        except DataError as error:
            message = f"{members['__url__']}: sample {members['__key__']}: {error}"
            if self.on_error == "stop":
                raise DataError(message) from error
            return self.builder.blank(message)


def stream_batches(
    tar_urls: str,
    manifest: Manifest,
    requests: Sequence[LabelRequest],
    geometry: Geometry,
    *,
    seed: int,
    global_batch: int,
    num_steps: int,
    rank: int = 0,
    world_size: int = 1,
    gradient_accumulation_steps: int = 1,
    start_step: int = 0,
    workers: int = 0,
    on_error: OnError = "stop",
    retry_seconds: float = remote.RETRY_SECONDS,
) -> Iterator[Batch]:
    """Return the micro-batches of one process from tars that have no manifest.

    Neither a resumed run nor another number of processes or workers reads the same samples.

    Args:
        tar_urls: The tars, as a pattern such as `train-{000..099}.tar`.
        manifest: Describes the fields; its shards are not read.
        requests: The field that each task reads.
        geometry: Crop, resize and flip of the pictures.
        seed: Seed of order and augmentation.
        global_batch: Samples of an optimizer step, over all processes and micro-batches.
        num_steps: Optimizer steps of the whole run.
        rank: Number of this process.
        world_size: Number of processes.
        gradient_accumulation_steps: Micro-batches of a process in one optimizer step.
        start_step: Optimizer steps already done.
        workers: Number of reading processes; 0 reads in this process.
        on_error: Action for damage, as in `TarStream`.
        retry_seconds: See `TarStream`.

    Raises:
        DataError: A request cannot be met, or the global batch is not divisible.
    """
    from webdataset.shardlists import expand_urls

    parts = world_size * gradient_accumulation_steps
    if global_batch % parts:
        raise DataError(
            f"data.global_batch: {global_batch} must be a multiple of {world_size} processes x "
            f"{gradient_accumulation_steps} accumulated batches = {parts}"
        )
    labels = resolve_labels(manifest, None, requests, flip=geometry.flip)
    builder = SampleBuilder(manifest.fields[manifest.image].member, labels, geometry)
    urls = expand_urls(remote.check_url(tar_urls))
    logger.warning(
        "%s: %d tars are read as a stream: their order is random with repeats, and a resumed run "
        "does not see the samples that it would have seen",
        tar_urls,
        len(urls),
    )
    loader = DataLoader(
        TarStream(urls, builder, (seed, rank, start_step), on_error, retry_seconds),
        batch_size=global_batch // parts,
        num_workers=workers,
        collate_fn=Collate(labels),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=start_worker,
    )
    return islice(loader, (num_steps - start_step) * gradient_accumulation_steps)


class _TarReader:
    """The samples of many tars; after an error it continues with the next tar.

    Attributes:
        url: The tar read last.
    """

    def __init__(self, urls: Iterator[str]) -> None:
        self.url = ""
        self._urls = urls
        self._samples: Iterator[dict[str, Any]] = iter(())

    def next_sample(self) -> dict[str, Any]:
        """Return the next sample of the current tar, or the first one of the next tar.

        Raises:
            DataError: The tar is missing or damaged.
            Exception: The source failed; each network file system has exceptions of its own.
        """
        from webdataset.tariterators import group_by_keys

        while True:
            for sample in self._samples:
                return sample
            self.url = next(self._urls)
            # After an error this generator is exhausted, so the next call opens another tar.
            self._samples = group_by_keys(_members(self.url), lcase=False)


class _TailRecorder:
    """A stream that keeps its last bytes: a tar cut between two members has no end mark there."""

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
    """Yield the members of one tar, as webdataset does.

    Raises:
        DataError: The tar is missing or damaged.
    """
    import fsspec
    from webdataset.tariterators import tar_file_iterator

    try:
        with fsspec.open(url, "rb") as raw:
            stream = _TailRecorder(raw, url)
            for member in tar_file_iterator(stream):
                yield {**member, "__url__": url}
            while stream.read(2**16):
                pass
    except FileNotFoundError as error:
        # fsspec raises FileNotFoundError for any failed first request; the cause tells them apart.
        if not isinstance(error.__cause__, FileNotFoundError | None):
            raise error.__cause__ from None
        raise DataError(f"{url}: missing") from error
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{url}: damaged tar: {error}") from error
    if stream.tail != _END_MARK:
        raise DataError(f"{url}: truncated tar: it has no end-of-archive mark")
