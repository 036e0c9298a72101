"""Sequential reading of tars that cannot be indexed, repeatedly and in random order."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data_pipelines.decode.bounds import check_member_size, check_sample_size
from data_pipelines.errors import DataError, SourceError
from data_pipelines.reading.collate import Batch, Collate
from data_pipelines.reading.dataset import OnError
from data_pipelines.reading.fields import LabelRequest, resolve_labels
from data_pipelines.reading.loader import start_worker
from data_pipelines.reading.samples import Sample, SampleBuilder
from data_pipelines.shards import remote
from data_pipelines.shards.manifest import Manifest
from data_pipelines.shards.tar_index import check_next_member
from data_pipelines.shards.tar_members import regular_members, split_name
from data_pipelines.transforms import Geometry

if TYPE_CHECKING:
    from tenacity import Retrying

logger = logging.getLogger(__name__)

SHUFFLE_BUFFER = 500  # encoded samples from which the next one is drawn
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_METADATA = re.compile(r"__[^/]*__($|/)")  # members that WebDataset skips: they are of no sample
_SKIPPED_BYTES = 2**20  # of a member that is not needed, read at once


@dataclass(frozen=True)
class _Encoded:
    """A sample: the bytes of the members that are needed, by suffix."""

    url: str
    key: str
    members: dict[str, bytes]


@dataclass(frozen=True)
class _Damage:
    """The error of a damaged tar, in place of a sample."""

    message: str


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
        for encoded in shuffled(self._encoded(shard["url"] for shard in shards)):
            yield self._sample(encoded, rng)

    def _encoded(self, urls: Iterator[str]) -> Iterator[_Encoded | _Damage]:
        reader = _TarReader(urls, self.builder.members)
        deadline = remote.FailureDeadline(self.retry_seconds)
        read = self._retrying(deadline, reader)
        while True:
            sample = self._next(read, reader)
            if isinstance(sample, _Encoded):
                deadline.reset()
            yield sample

    def _next(self, read: Retrying, reader: _TarReader) -> _Encoded | _Damage:
        try:
            return read(reader.next_sample)
        except SourceError:
            raise
        except DataError as error:
            if self.on_error == "stop":
                raise
            return _Damage(str(error))

    def _retrying(self, deadline: remote.FailureDeadline, reader: _TarReader) -> Retrying:
        def log(error: BaseException, _wait: float) -> None:
            logger.warning("%s: %r; going on with another tar", reader.url, error)

        def give_up(error: BaseException) -> SourceError:
            return SourceError(
                f"{reader.url}: failed, as {deadline.failures - 1} tars before in "
                f"{self.retry_seconds:g} s: {error!r}"
            )

        return remote.build_retrying(deadline, log=log, give_up=give_up)

    def _sample(self, encoded: _Encoded | _Damage, rng: np.random.Generator) -> Sample:
        if isinstance(encoded, _Damage):
            return self.builder.blank(encoded.message)
        try:
            return self.builder.build(encoded.key, encoded.members, rng)
        except DataError as error:
            message = f"{encoded.url}: sample {encoded.key}: {error}"
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
        DataError: A request cannot be met, the manifest is that of a mix, or the global batch is
            not divisible.
    """
    from webdataset.shardlists import expand_urls

    parts = world_size * gradient_accumulation_steps
    if global_batch % parts:
        raise DataError(
            f"data.global_batch: {global_batch} must be a multiple of {world_size} processes x "
            f"{gradient_accumulation_steps} accumulated batches = {parts}"
        )
    if manifest.sources:
        raise DataError(
            f"data.tar_urls: {manifest.dataset} is a mix, and samples of a stream have no source; "
            "allowed: the manifest of one of its sources"
        )
    labels = resolve_labels(manifest, None, requests, flip=geometry.flip)
    builder = SampleBuilder(manifest.image_member(None), labels, geometry)
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

    Args:
        urls: The tars.
        members: Suffixes of the members that are needed.

    Attributes:
        url: The tar read last.
    """

    def __init__(self, urls: Iterator[str], members: Collection[str]) -> None:
        self.url = ""
        self._urls = urls
        self._members = members
        self._samples: Iterator[_Encoded] = iter(())

    def next_sample(self) -> _Encoded:
        """Return the next sample of the current tar, or the first one of the next tar.

        Raises:
            DataError: The tar is missing or damaged.
            Exception: The source failed; each network file system has exceptions of its own.
        """
        while True:
            for sample in self._samples:
                return sample
            self.url = next(self._urls)
            # After an error this generator is exhausted, so the next call opens another tar.
            self._samples = _samples(self.url, self._members)


class _ForwardFile:
    """A stream as `tar_members.TarSource`: bytes are read in ascending order, others skipped.

    Attributes:
        label: The URL.
        size: None: a stream may have any length.
    """

    size = None

    def __init__(self, label: str, raw: BinaryIO) -> None:
        self.label = label
        self._raw = raw
        self._position = 0

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes.

        Raises:
            DataError: The stream ends before.
        """
        assert offset >= self._position, "a stream is read forwards"
        while self._position < offset:
            self._take(min(offset - self._position, _SKIPPED_BYTES))
        return self._take(size)

    def _take(self, size: int) -> bytes:
        start = self._position
        parts = []
        while self._position < start + size:
            part = self._raw.read(start + size - self._position)
            if not part:
                raise DataError(
                    f"{self.label}: truncated tar: it ends at byte {self._position}, before its "
                    "end-of-archive mark"
                )
            if not self._position and part.startswith(_COMPRESSED):
                raise DataError(f"{self.label}: a compressed tar; allowed are plain ones")
            parts.append(part)
            self._position += len(part)
        return b"".join(parts)


def _samples(url: str, members: Collection[str]) -> Iterator[_Encoded]:
    """Yield the samples of one tar.

    Raises:
        DataError: The tar is missing or damaged.
    """
    import fsspec

    try:
        with fsspec.open(url, "rb", **remote.client_options(url)) as raw:
            file = _ForwardFile(url, raw)
            yield from _grouped(file, members)
    except FileNotFoundError as error:
        # fsspec raises FileNotFoundError for any failed first request; the cause tells them apart.
        if not isinstance(error.__cause__, FileNotFoundError | None):
            raise error.__cause__ from None
        raise DataError(f"{url}: missing") from error


def _grouped(file: _ForwardFile, members: Collection[str]) -> Iterator[_Encoded]:
    """Yield the samples of a tar, of each only the requested members.

    A sample is yielded when the next one begins, so that one with missing members because the tar
    ends early is not.
    """
    sample: _Encoded | None = None
    suffixes: set[str] = set()
    total = 0
    for name, offset, size in regular_members(file):
        parts = split_name(name)
        if parts is None or _METADATA.match(name):
            continue
        key, suffix = parts
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample, suffixes, total = _Encoded(file.label, key, {}), set(), 0
        check_next_member(file.label, name, suffix in suffixes, len(suffixes))
        suffixes.add(suffix)
        if suffix in members:
            total += size
            try:
                check_member_size(suffix, size)
                check_sample_size(total)
            except DataError as error:
                raise DataError(f"{file.label}: sample {key}: {error}") from error
            sample.members[suffix] = file.read(offset, size)
    if sample is not None:
        yield sample
