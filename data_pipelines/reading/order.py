"""The sample order, computed from seed and epoch for any number of processes and workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler

from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Split

MAX_STREAMS = 64
FILLER = -1  # id of a sample without data, which fills the last evaluation batch of a process


@dataclass
class _EpochTables:
    """The shards of one epoch's positions, and the shuffled blocks in use."""

    epoch: int
    offset: int  # start of the epoch's sequence, so that different samples are left out each epoch
    first_id: np.ndarray  # [num_shards] global id of each shard's first sample, in epoch order
    starts: np.ndarray  # [num_shards] position of each shard's first sample
    blocks: dict[int, tuple[int, np.ndarray]]  # stream -> its current block and that block's order


@dataclass(frozen=True)
class EpochOrder:
    """The order of a split's samples in every epoch.

    The shards are permuted, their samples concatenated, and the sequence is rotated and divided
    into equal streams. Each stream is shuffled within blocks, which limits the number of shards
    that it reads at a time. Samples that do not fill the streams are the rest, which the steps of
    this epoch leave out.

    Args:
        shard_sizes: Number of samples of each shard.
        seed: Seed of all permutations.
        num_streams: Number of streams.
        block_size: Samples of a stream that are shuffled together.
    """

    shard_sizes: tuple[int, ...]
    seed: int
    num_streams: int
    block_size: int = 4096
    _cache: list[_EpochTables] = field(default_factory=list, init=False, compare=False, repr=False)

    @cached_property
    def num_samples(self) -> int:
        """Number of samples of the split."""
        return sum(self.shard_sizes)

    @cached_property
    def per_stream(self) -> int:
        """Number of samples of a stream in an epoch."""
        return self.num_samples // self.num_streams

    def steps_per_epoch(self, global_batch: int) -> int:
        """Return the number of complete batches of `global_batch` samples in an epoch."""
        return self.per_stream * self.num_streams // global_batch

    def check_batch(self, global_batch: int) -> None:
        """Check that an epoch has a batch.

        Raises:
            DataError: The split is smaller than a batch.
        """
        if self.per_stream < global_batch // self.num_streams:
            raise DataError(
                f"data.global_batch: {global_batch} is more than the split's {self.num_samples} "
                f"samples give in {self.num_streams} streams of {self.per_stream}; at most "
                f"{self.per_stream * self.num_streams} allowed"
            )

    def local_samples(
        self, step: int, global_batch: int, rank: int, world_size: int
    ) -> list[tuple[int, int]]:
        """Return the (epoch, id) of one process's part of the global batch of a step."""
        epoch, index = divmod(step, self.steps_per_epoch(global_batch))
        size = global_batch // self.num_streams
        lo = index * size
        per_rank = self.num_streams // world_size
        return [
            (epoch, sample_id)
            for stream in range(rank * per_rank, (rank + 1) * per_rank)
            for sample_id in self.positions(epoch, stream, lo, lo + size).tolist()
        ]

    def positions(self, epoch: int, stream: int, lo: int, hi: int) -> np.ndarray:
        """Return the global sample ids at positions lo to hi (exclusive) of a stream.

        Args:
            epoch: Number of the epoch.
            stream: Number of the stream; `num_streams` is the rest that fills no stream.
            lo: First position.
            hi: Position after the last one.

        Raises:
            ValueError: The positions are outside the stream.
        """
        length = self._length(stream)
        if not 0 <= lo < hi <= length:
            raise ValueError(f"lo, hi: {lo}, {hi} must be within the stream's {length}")
        tables = self._tables(epoch)
        parts = []
        for number in range(lo // self.block_size, (hi - 1) // self.block_size + 1):
            start = number * self.block_size
            shuffled = self._shuffled_block(tables, stream, number)
            parts.append(start + shuffled[max(lo - start, 0) : hi - start])
        positions = stream * self.per_stream + np.concatenate(parts)
        positions = (positions + tables.offset) % self.num_samples
        shard = np.searchsorted(tables.starts, positions, side="right") - 1
        return tables.first_id[shard] + positions - tables.starts[shard]

    def _length(self, stream: int) -> int:
        """Return the number of samples of a stream, or of the rest."""
        if stream < self.num_streams:
            return self.per_stream
        return self.num_samples - self.per_stream * self.num_streams

    def _shuffled_block(self, tables: _EpochTables, stream: int, number: int) -> np.ndarray:
        current = tables.blocks.get(stream)
        if current is None or current[0] != number:
            rng = np.random.default_rng([self.seed, tables.epoch, stream, number])
            size = min(self.block_size, self._length(stream) - number * self.block_size)
            current = tables.blocks[stream] = (number, rng.permutation(size))
        return current[1]

    def _tables(self, epoch: int) -> _EpochTables:
        if not self._cache or self._cache[0].epoch != epoch:
            sizes = np.asarray(self.shard_sizes, np.int64)
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


def default_num_streams(global_batch: int) -> int:
    """Return the largest power of two up to 64 that divides the global batch."""
    return math.gcd(global_batch, MAX_STREAMS)


class Order(Protocol):
    """The samples of every step: `EpochOrder`, or `mixed_order.MixedOrder`."""

    @property
    def num_streams(self) -> int:
        """Number of streams, a multiple of every world size that the run may have."""

    def steps_per_epoch(self, global_batch: int) -> int:
        """Return the number of steps in an epoch."""

    def check_batch(self, global_batch: int) -> None:
        """Raise DataError if there are too few samples for a batch."""

    def local_samples(
        self, step: int, global_batch: int, rank: int, world_size: int
    ) -> list[tuple[int, int]]:
        """Return the (epoch, id) of one process's part of the global batch of a step.

        The parts in rank order are the same list for every number of processes.
        """


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Micro-batches of (epoch, id) that one process trains on, over as many epochs as needed.

    The samples of a step, concatenated in rank order, depend neither on the number of processes
    nor on gradient accumulation: in an `EpochOrder` each step takes the same number of samples
    from every stream, and each process reads a contiguous range of streams.

    Args:
        order: Order of the samples.
        global_batch: Samples of an optimizer step, over all processes and micro-batches.
        rank: Number of this process.
        world_size: Number of processes.
        num_steps: Optimizer steps of the whole run.
        gradient_accumulation_steps: Micro-batches of a process in one optimizer step.
        start_step: Optimizer steps already done.

    Raises:
        DataError: The sizes are not divisible, or the split is smaller than a batch.
    """

    def __init__(
        self,
        order: Order,
        *,
        global_batch: int,
        num_steps: int,
        rank: int = 0,
        world_size: int = 1,
        gradient_accumulation_steps: int = 1,
        start_step: int = 0,
    ) -> None:
        _check_batch(order, global_batch, world_size, gradient_accumulation_steps)
        if not 0 <= start_step <= num_steps:
            raise ValueError(
                f"start_step: {start_step} must be between 0 and num_steps {num_steps}"
            )
        self.order = order
        self.num_steps = num_steps
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.start_step = start_step
        self._place = (global_batch, rank, world_size)

    def __len__(self) -> int:
        return (self.num_steps - self.start_step) * self.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start_step, self.num_steps):
            samples = self.order.local_samples(step, *self._place)
            size = len(samples) // self.gradient_accumulation_steps
            for micro in range(self.gradient_accumulation_steps):
                yield samples[micro * size : (micro + 1) * size]


class EvalBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (0, id) in which every sample occurs exactly once over all processes.

    Every process has the same number of batches of the same size; id -1 fills the last ones.

    Args:
        num_samples: Number of samples of the split.
        batch_size: Samples of a batch of one process.
        rank: Number of this process.
        world_size: Number of processes.
        limit: Number of samples to evaluate, evenly spread over the split; None for all.
        chosen: Ids of the samples to evaluate, in place of all; without `limit`.

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
        chosen: Sequence[int] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} must be at least 1")
        if limit is not None and limit < 1:
            raise ValueError(f"limit: {limit} must be at least 1, or none for all samples")
        total = num_samples if limit is None else min(limit, num_samples)
        if chosen is not None:
            total = len(chosen)
        self._chosen = chosen
        self.num_batches = -(-total // (batch_size * world_size))
        self._num_samples, self._total = num_samples, total
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.num_batches):
            start = (batch * self._world_size + self._rank) * self._batch_size
            positions = range(start, start + self._batch_size)
            yield [(0, self._sample(position)) for position in positions]

    def _sample(self, position: int) -> int:
        if self._chosen is not None and position < self._total:
            return self._chosen[position]
        return position * self._num_samples // self._total if position < self._total else FILLER


def spread_samples(split: Split, limit: int) -> list[int]:
    """Return the ids of at most `limit` samples, evenly spread over a split.

    Of a mix they are equally many of each source, as far as it has them: tasks of a small source
    have labels among a few samples, too.
    """
    groups: dict[str | None, list[np.ndarray]] = {}
    for shard, end in zip(
        split.shards, accumulate(shard.samples for shard in split.shards), strict=True
    ):
        groups.setdefault(shard.source, []).append(np.arange(end - shard.samples, end))
    chosen, left = [], min(limit, split.num_samples)
    for number, parts in enumerate(sorted(groups.values(), key=lambda parts: sum(map(len, parts)))):
        ids = np.concatenate(parts)
        count = min(len(ids), left // (len(groups) - number))
        chosen.append(ids[np.arange(count) * len(ids) // max(1, count)])
        left -= count
    return np.sort(np.concatenate(chosen)).tolist()


def _check_batch(
    order: Order, global_batch: int, world_size: int, gradient_accumulation_steps: int
) -> None:
    parts = world_size * gradient_accumulation_steps
    if global_batch < 1 or global_batch % parts:
        raise DataError(
            f"data.global_batch: {global_batch} must be a multiple of {world_size} processes x "
            f"{gradient_accumulation_steps} accumulated batches = {parts}"
        )
    num_streams = order.num_streams
    if num_streams < 1 or num_streams % world_size or global_batch % num_streams:
        allowed = [
            n for n in range(world_size, global_batch + 1, world_size) if not global_batch % n
        ]
        raise DataError(
            f"data.num_streams: {num_streams} must be a multiple of the {world_size} processes and "
            f"divide data.global_batch {global_batch}; allowed are {allowed}"
        )
    order.check_batch(global_batch)
