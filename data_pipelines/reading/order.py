"""Which sample comes when: pure arithmetic, the same for any number of processes and workers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch.utils.data import Sampler

from data_pipelines.errors import DataError

MAX_STREAMS = 64
FILLER = -1  # id that stands for no sample: it fills the last evaluation batch of a process


@dataclass
class _EpochTables:
    """Where the positions of one epoch lie in the shards, and the shuffled blocks in use."""

    epoch: int
    offset: int  # the epoch's sequence starts here, so that no sample is always the one dropped
    first_id: np.ndarray  # [num_shards] global id of each shard's first sample, in epoch order
    starts: np.ndarray  # [num_shards] position of each shard's first sample
    blocks: dict[int, tuple[int, np.ndarray]]  # stream -> its current block and that block's order


@dataclass(frozen=True)
class EpochOrder:
    """The order of a split's samples in every epoch.

    The shards are permuted, their samples laid end to end and rotated, and the sequence is cut
    into equal streams; each stream is shuffled within blocks, which bounds the shards that it
    reads at a time. Samples that do not fill the streams are left out for the epoch.

    Args:
        sizes: Samples of each shard.
        seed: Seed of all permutations.
        streams: Number of streams.
        block: Samples of a stream that are shuffled together.
    """

    sizes: tuple[int, ...]
    seed: int
    streams: int
    block: int = 4096
    _cache: list[_EpochTables] = field(default_factory=list, init=False, compare=False, repr=False)

    @cached_property
    def num_samples(self) -> int:
        """Samples of the split."""
        return sum(self.sizes)

    @cached_property
    def per_stream(self) -> int:
        """Samples of a stream in an epoch."""
        return self.num_samples // self.streams

    def steps_per_epoch(self, global_batch: int) -> int:
        """Whole batches of `global_batch` samples that an epoch gives."""
        return self.per_stream * self.streams // global_batch

    def positions(self, epoch: int, stream: int, lo: int, hi: int) -> np.ndarray:
        """Global sample ids at places lo to hi (exclusive) of a stream.

        Raises:
            ValueError: The places are not in the stream.
        """
        if not 0 <= lo < hi <= self.per_stream:
            raise ValueError(f"lo, hi: {lo}, {hi} must lie within the stream's {self.per_stream}")
        tables = self._tables(epoch)
        parts = []
        for number in range(lo // self.block, (hi - 1) // self.block + 1):
            start = number * self.block
            shuffled = self._shuffled_block(tables, stream, number)
            parts.append(start + shuffled[max(lo - start, 0) : hi - start])
        places = stream * self.per_stream + np.concatenate(parts)
        places = (places + tables.offset) % self.num_samples
        shard = np.searchsorted(tables.starts, places, side="right") - 1
        return tables.first_id[shard] + places - tables.starts[shard]

    def _shuffled_block(self, tables: _EpochTables, stream: int, number: int) -> np.ndarray:
        current = tables.blocks.get(stream)
        if current is None or current[0] != number:
            rng = np.random.default_rng([self.seed, tables.epoch, stream, number])
            size = min(self.block, self.per_stream - number * self.block)
            current = tables.blocks[stream] = (number, rng.permutation(size))
        return current[1]

    def _tables(self, epoch: int) -> _EpochTables:
        if not self._cache or self._cache[0].epoch != epoch:
            sizes = np.asarray(self.sizes, np.int64)
            rng = np.random.default_rng([self.seed, epoch])
            shards = rng.permutation(len(sizes))
            self._cache[:] = [
                _EpochTables(
                    epoch=epoch,
                    offset=int(rng.integers(self.num_samples)),
                    first_id=(np.cumsum(sizes) - sizes)[shards],
                    starts=np.cumsum(sizes[shards]) - sizes[shards],
                    blocks={},
                )
            ]
        return self._cache[0]


def default_streams(global_batch: int) -> int:
    """Largest power of two up to 64 that divides the global batch."""
    return math.gcd(global_batch, MAX_STREAMS)


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Micro-batches of (epoch, id) that one process trains on, over as many epochs as needed.

    Step t takes the same number of samples from each stream and a process reads its own
    contiguous share of the streams, so the step's samples, joined in rank order, depend neither
    on the number of processes nor on accumulation.

    Args:
        order: Order of the samples.
        global_batch: Samples of an optimizer step, over all processes and micro-batches.
        rank: This process.
        world_size: Number of processes.
        num_steps: Optimizer steps of the whole run.
        accumulation: Micro-batches of a process in one optimizer step.
        start_step: Optimizer steps already done.

    Raises:
        DataError: The numbers do not divide as needed or the split is smaller than a batch.
    """

    def __init__(
        self,
        order: EpochOrder,
        *,
        global_batch: int,
        num_steps: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        start_step: int = 0,
    ) -> None:
        _check_batch(order, global_batch, world_size, accumulation)
        if not 0 <= start_step <= num_steps:
            raise ValueError(
                f"start_step: {start_step} must be between 0 and num_steps {num_steps}"
            )
        self.order = order
        self.num_steps = num_steps
        self.accumulation = accumulation
        self.start_step = start_step
        self.per_stream = global_batch // order.streams
        self.steps_per_epoch = order.steps_per_epoch(global_batch)
        streams = order.streams // world_size
        self.own_streams = range(rank * streams, (rank + 1) * streams)

    def __len__(self) -> int:
        return (self.num_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start_step, self.num_steps):
            epoch, index = divmod(step, self.steps_per_epoch)
            lo = index * self.per_stream
            samples = [
                (epoch, sample_id)
                for stream in self.own_streams
                for sample_id in self.order.positions(
                    epoch, stream, lo, lo + self.per_stream
                ).tolist()
            ]
            size = len(samples) // self.accumulation
            for micro in range(self.accumulation):
                yield samples[micro * size : (micro + 1) * size]


class EvalBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (0, id) in which every sample comes exactly once over all processes.

    Every process has the same number of batches of the same size; id -1 fills the gaps.

    Args:
        num_samples: Samples of the split.
        batch_size: Samples of a batch of one process.
        rank: This process.
        world_size: Number of processes.
        limit: Evaluate this many samples, evenly spread over the split; None for all.

    Raises:
        ValueError: batch_size or limit is below 1.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        limit: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} must be at least 1")
        if limit is not None and limit < 1:
            raise ValueError(f"limit: {limit} must be at least 1, or none for all samples")
        total = num_samples if limit is None else min(limit, num_samples)
        self.num_batches = -(-total // (batch_size * world_size))
        self._num_samples, self._total = num_samples, total
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.num_batches):
            start = (batch * self._world_size + self._rank) * self._batch_size
            places = range(start, start + self._batch_size)
            yield [(0, self._sample(place)) for place in places]

    def _sample(self, place: int) -> int:
        return place * self._num_samples // self._total if place < self._total else FILLER


def _check_batch(order: EpochOrder, global_batch: int, world_size: int, accumulation: int) -> None:
    parts = world_size * accumulation
    if global_batch < 1 or global_batch % parts:
        raise DataError(
            f"data.global_batch: {global_batch} must be a multiple of {world_size} processes x "
            f"{accumulation} accumulated batches = {parts}"
        )
    if order.streams < 1 or order.streams % world_size or global_batch % order.streams:
        allowed = [
            streams
            for streams in range(world_size, global_batch + 1, world_size)
            if global_batch % streams == 0
        ]
        raise DataError(
            f"data.num_streams: {order.streams} must be a multiple of the {world_size} processes "
            f"and divide data.global_batch {global_batch}; allowed are {allowed}"
        )
    if order.per_stream < global_batch // order.streams:
        raise DataError(
            f"data.global_batch: {global_batch} is more than the split's {order.num_samples} "
            f"samples give in {order.streams} streams of {order.per_stream}; at most "
            f"{order.per_stream * order.streams} allowed"
        )
