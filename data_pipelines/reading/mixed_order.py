"""The sample order of a mix whose sources have weights, computed from seed and step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.reading.order import EpochOrder
from data_pipelines.shards.manifest import Split
from dmtg.suggestions import did_you_mean

_BITS = 48  # of the numbers u_t: there are fewer than 2**48 steps
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False)
class SourceOrder:
    """The endless order of one source's samples: passes, each a permutation of all samples.

    A pass takes samples from its streams in turns, and ends with the rest that fills no stream.

    Args:
        order: Order of the source's samples, of which a pass is an epoch.
        first: Global id of the first sample of each of the source's shards.
    """

    order: EpochOrder
    first: np.ndarray  # [num_shards]

    def samples(self, lo: int, hi: int) -> np.ndarray:
        """Return pass and global id [samples, 2] of the samples at positions lo to hi (exclusive).

        Those of a pass are ordered by stream, so that a process reads few streams.
        """
        parts = []
        while lo < hi:
            number, start = divmod(lo, self.order.num_samples)
            count = min(hi - lo, self.order.num_samples - start)
            ids = self._global(self._of_pass(number, start, start + count))
            parts.append(np.stack([np.full_like(ids, number), ids], axis=1))
            lo += count
        return np.concatenate(parts)

    def _of_pass(self, number: int, lo: int, hi: int) -> np.ndarray:
        """Return the source's own ids at positions of one pass."""
        order, num_streams = self.order, self.order.num_streams
        full = order.per_stream * num_streams
        parts = []
        for stream, turn in enumerate(self._turns):
            # Position p is in the stream whose turn is p % num_streams, at p // num_streams.
            first, last = (-(-(min(end, full) - turn) // num_streams) for end in (lo, hi))
            if first < last:
                parts.append(order.positions(number, stream, first, last))
        if hi > full:
            parts.append(order.positions(number, num_streams, max(lo, full) - full, hi - full))
        return np.concatenate(parts)

    @cached_property
    def _turns(self) -> list[int]:
        """The turn of each stream; consecutive turns are those of streams far from each other.

        A few consecutive positions are therefore spread over all streams.
        """
        turns = np.arange(self.order.num_streams)
        return np.argsort(turns * _GOLDEN % 1.0, kind="stable").tolist()

    def _global(self, ids: np.ndarray) -> np.ndarray:
        sizes = np.asarray(self.order.shard_sizes, np.int64)
        ends = np.cumsum(sizes)
        shard = np.searchsorted(ends, ids, side="right")
        return self.first[shard] + ids - (ends - sizes)[shard]


@dataclass(frozen=True, eq=False)
class MixedOrder:
    """The order of a mix in which each source has a given share of the samples.

    With the shares p_s and B samples of a global batch, let P_s = B (p_1 + ... + p_s), and u_t be
    the van der Corput sequence in [0, 1). The batch of step t has as many samples of source s as
    there are integers j with P_(s-1) <= u_t + j < P_s (systematic sampling): B p_s rounded down or
    up, B in all. How many numbers u_0 ... u_(t-1) are below a limit is counted without a loop over
    the steps, and with it the samples that a source had before step t, which differ from t B p_s by
    at most 2 + (2/3) log2 t.

    Each source is read in passes of its own (`SourceOrder`): none of its samples is repeated before
    all others were used. In a batch the sources alternate, so that every process and micro-batch
    has their shares. An epoch is as many steps as the samples of all sources fill; the passes go on
    over its end.

    Args:
        sources: The order of each source.
        weights: Their relative weights.
        names: Their names, for messages.
        num_streams: Number of streams of each source.
    """

    sources: tuple[SourceOrder, ...]
    weights: tuple[float, ...]
    names: tuple[str, ...]
    num_streams: int

    @cached_property
    def num_samples(self) -> int:
        """Number of samples of all sources."""
        return sum(source.order.num_samples for source in self.sources)

    @cached_property
    def shares(self) -> tuple[Fraction, ...]:
        """The share of each source, exactly, so that all machines compute the same order."""
        total = sum(map(Fraction, self.weights))
        return tuple(Fraction(weight) / total for weight in self.weights)

    def steps_per_epoch(self, global_batch: int) -> int:
        """See `Order`."""
        return self.num_samples // global_batch

    def check_batch(self, global_batch: int) -> None:
        """Check that no batch needs a sample of a source twice.

        Raises:
            DataError: A source has fewer samples than its share of a batch.
        """
        for name, source, share in zip(self.names, self.sources, self.shares, strict=True):
            needed, has = -(-share * global_batch // 1), source.order.num_samples
            if needed > has:
                raise DataError(
                    f"data.mix.{name}: {needed} of the {global_batch} samples of data.global_batch "
                    f"would be of {name}, which has {has}; give it a lower weight or take a "
                    "smaller batch"
                )

    def counts_before(self, step: int, global_batch: int) -> list[int]:
        """Return the number of samples that each source has in all batches before a step."""
        limits = [global_batch * share for share in accumulate(self.shares)]
        below = [0, *(_sum_of_ceilings(limit, step) for limit in limits)]
        return [upper - lower for lower, upper in pairwise(below)]

    def local_samples(
        self, step: int, global_batch: int, rank: int, world_size: int
    ) -> list[tuple[int, int]]:
        """Return the (pass, id) of one process's part of the global batch, see `Order`."""
        before = self.counts_before(step, global_batch)
        after = self.counts_before(step + 1, global_batch)
        samples, places = [], []
        for source, lo, hi in zip(self.sources, before, after, strict=True):
            if lo < hi:
                samples.append(source.samples(lo, hi))
                places.append((np.arange(hi - lo) + 0.5) / (hi - lo))
        order = np.argsort(np.concatenate(places), kind="stable")
        size = global_batch // world_size
        local = np.concatenate(samples)[order[rank * size : (rank + 1) * size]]
        return [(number, sample_id) for number, sample_id in local.tolist()]


def mixed_order(
    split: Split, weights: Mapping[str, float], *, seed: int, num_streams: int
) -> MixedOrder:
    """Return the order of a split of a mix.

    Args:
        split: The manifest's entry.
        weights: Relative weights of sources by name; others have the weight 1.
        seed: Seed of all permutations.
        num_streams: Number of streams of each source.

    Raises:
        DataError: The split is of no mix, or a source is unknown or has no sample in it.
    """
    names = list(dict.fromkeys(shard.source for shard in split.shards if shard.source is not None))
    if not names:
        raise DataError(
            "data.mix: given, but data.shards is no mix of sources; `dmtg shards mix` writes one"
        )
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise DataError(
            f"data.mix.{unknown[0]}: no source of this name has samples in the split; allowed are "
            f"{', '.join(names)}{did_you_mean(unknown[0], names)}"
        )
    return MixedOrder(
        tuple(_source_order(split, name, seed, num_streams) for name in names),
        tuple(weights.get(name, 1.0) for name in names),
        tuple(names),
        num_streams,
    )


def _source_order(split: Split, name: str, seed: int, num_streams: int) -> SourceOrder:
    ends = accumulate(shard.samples for shard in split.shards)
    own = [
        (shard.samples, end - shard.samples)
        for shard, end in zip(split.shards, ends, strict=True)
        if shard.source == name
    ]
    sizes, first = zip(*own, strict=True)
    # Of the name, so that another source leaves the order of this one as it is.
    state = np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)
    return SourceOrder(EpochOrder(sizes, int(state[0]), num_streams), np.asarray(first, np.int64))


def _sum_of_ceilings(limit: Fraction, count: int) -> int:
    """Return the sum of ceil(limit - u_t) over t < count."""
    whole = limit // 1
    return count * whole + _numbers_below(limit - whole, count)


def _numbers_below(limit: Fraction, count: int) -> int:
    """Return how many of the first `count` numbers u_t are below a limit.

    u_t has the binary digits of t in reverse order behind the point. The first `count` numbers are
    divided into runs of 2**b numbers, one for each binary digit 1 of `count`. The numbers of a run
    have one distance 2**-b from each other.
    """
    total, start = 0, 0
    for bit in reversed(range(count.bit_length())):
        if not count >> bit & 1:
            continue
        least = Fraction(int(f"{start:0{_BITS}b}"[::-1], 2), 2**_BITS)  # u of the run's first
        total += min(max(-((least - limit) * 2**bit // 1), 0), 2**bit)
        start += 1 << bit
    return total
