"""The order of a mix: shares of each batch, passes over each source, any processes, any resume."""

from fractions import Fraction
from itertools import chain, pairwise
from math import ceil, floor, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.reading.mixed_order import mixed_order
from data_pipelines.reading.order import TrainBatches, spread_samples
from data_pipelines.shards.manifest import Shard, Split
from tests.batches import steps_of

SEEDS = st.integers(0, 2**31)
WEIGHTS = st.floats(0.05, 20.0)
SIZES = st.lists(st.integers(8, 40), min_size=1, max_size=4)


def split_of(**sizes):
    """A split of sources with shards of these sizes; shards of the sources alternate."""
    longest = max(map(len, sizes.values()))
    shards = tuple(
        Shard(
            name=f"{name}-{n}.tar",
            samples=of_name[n],
            bytes=512,
            sha256="0" * 64,
            source=name,
        )
        for n in range(longest)
        for name, of_name in sizes.items()
        if n < len(of_name)
    )
    return Split(shards=shards, labelled={})


def source_of(split):
    """The source of each sample, by id."""
    return [shard.source for shard in split.shards for _ in range(shard.samples)]


def offset(step):
    """The van der Corput number of a step, from its definition."""
    number, weight = Fraction(0), Fraction(1, 2)
    while step:
        step, digit = divmod(step, 2)
        number, weight = number + digit * weight, weight / 2
    return number


def naive_counts(weights, global_batch, num_steps):
    """Samples of each source in every step: the points offset + j that are in its interval."""
    total = sum(map(Fraction, weights))
    limits = [Fraction(0)]
    for weight in weights:
        limits.append(limits[-1] + global_batch * Fraction(weight) / total)
    return [
        [
            sum(low <= offset(step) + j < high for j in range(global_batch + 1))
            for low, high in pairwise(limits)
        ]
        for step in range(num_steps)
    ]


@settings(max_examples=8, deadline=None)
@given(weights=st.lists(WEIGHTS, min_size=2, max_size=4), seed=SEEDS)
def test_batches_have_the_samples_of_a_naive_systematic_sampling(weights, seed):
    names = "abcd"[: len(weights)]
    split = split_of(**{name: [32, 17] for name in names})
    sources = source_of(split)
    order = mixed_order(split, dict(zip(names, weights, strict=True)), seed=seed, num_streams=8)
    counts = [
        [sum(sources[sample] == name for _, sample in step) for name in names]
        for step in steps_of(order, num_steps=20)
    ]
    assert counts == naive_counts(weights, 16, 20)
    shares = [16 * weight / sum(weights) for weight in weights]
    for step in counts:
        assert sum(step) == 16
        for count, share in zip(step, shares, strict=True):
            assert floor(share - 1e-9) <= count <= ceil(share + 1e-9)


@pytest.mark.parametrize("step", [1, 7, 1000, 12_345, 10**6 + 1, 2**40 + 3])
def test_a_source_has_its_share_at_every_step(step):
    split = split_of(a=[300], b=[200, 100], c=[500])
    order = mixed_order(split, {"a": 2.0, "b": 0.3, "c": np.pi}, seed=0, num_streams=8)
    counts = order.counts_before(step, 24)
    assert sum(counts) == 24 * step
    for count, share in zip(counts, order.shares, strict=True):
        assert abs(count - 24 * step * share) <= 2 + 2 / 3 * log2(step)


@settings(max_examples=10, deadline=None)
@given(
    first=SIZES,
    second=SIZES,
    weight=st.floats(0.2, 5.0),
    seed=SEEDS,
    streams=st.sampled_from([1, 2, 4, 8]),
)
def test_no_sample_is_repeated_before_all_of_its_source_were_used(
    first, second, weight, seed, streams
):
    split = split_of(a=first, b=second)
    sources = source_of(split)
    order = mixed_order(split, {"a": weight}, seed=seed, num_streams=streams)
    used = list(chain(*steps_of(order, num_steps=60, global_batch=8)))
    assert len(set(used)) == len(used)  # a sample has another pass each time: another augmentation
    for name, size in (("a", sum(first)), ("b", sum(second))):
        own = [(number, sample) for number, sample in used if sources[sample] == name]
        everything = {n for n, source in enumerate(sources) if source == name}
        for number in range(len(own) // size):
            assert {s for n, s in own if n == number} == everything
        times = np.bincount([sample for _, sample in own], minlength=len(sources))
        assert np.ptp(times[sorted(everything)]) <= 1


@settings(max_examples=8, deadline=None)
@given(first=SIZES, second=SIZES, seed=SEEDS, data=st.data())
def test_processes_accumulation_and_resumes_leave_the_order_as_it_is(first, second, seed, data):
    split = split_of(a=[16, *first], b=[16, *second])
    weights = {"a": data.draw(WEIGHTS), "b": data.draw(WEIGHTS)}
    expected = steps_of(mixed_order(split, weights, seed=seed, num_streams=8), num_steps=24)
    stops = sorted({0, 24, *data.draw(st.lists(st.integers(1, 23), max_size=4))})
    steps = []
    for start, stop in pairwise(stops):
        world_size = data.draw(st.sampled_from([1, 2, 4, 8]))
        accumulation = data.draw(st.sampled_from([1, 2]))
        order = mixed_order(split, weights, seed=seed, num_streams=8)
        steps += steps_of(order, world_size, accumulation, start, num_steps=stop)
    assert steps == expected


def test_every_process_has_the_shares():
    split = split_of(a=[900], b=[300], c=[50, 50])
    sources = source_of(split)
    order = mixed_order(split, {"a": 2.0, "b": 1.0, "c": 1.0}, seed=0, num_streams=8)
    for step in range(20):
        for rank in range(8):
            local = [sources[sample] for _, sample in order.local_samples(step, 64, rank, 8)]
            assert len(local) == 8
            assert abs(local.count("a") - 4) <= 1
            assert abs(local.count("b") - 2) <= 1


def test_seeds_and_passes_shuffle():
    split = split_of(a=[50], b=[50])

    def passes(seed):
        order = mixed_order(split, {}, seed=seed, num_streams=2)
        used = [pair for step in steps_of(order, num_steps=20, global_batch=10) for pair in step]
        return [[s for n, s in used if n == number and s < 50] for number in range(2)]

    orders = [*passes(0), *passes(1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert passes(0) == orders[:2]


def test_a_process_reads_few_shards_at_a_time():
    """Of each source one of four processes reads about its quarter of the streams."""
    split = split_of(a=[64] * 64, b=[64] * 64)
    order = mixed_order(split, {"a": 3.0}, seed=0, num_streams=64)
    read = {sample // 64 for t in range(16) for _, sample in order.local_samples(t, 64, 0, 4)}
    everything = {sample // 64 for t in range(16) for _, sample in order.local_samples(t, 64, 0, 1)}
    assert len(everything) > 80
    assert len(read) < 0.5 * len(everything)


def test_an_epoch_has_as_many_steps_as_all_samples_fill():
    order = mixed_order(split_of(a=[50], b=[30]), {"a": 9.0}, seed=0, num_streams=1)
    assert order.steps_per_epoch(8) == 10


def test_a_step_anywhere_in_millions_of_samples_needs_few_permutations(monkeypatch):
    split = split_of(a=[920] * 5000, b=[500] * 10)
    seeds = []
    default_rng = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda s: (seeds.append(s), default_rng(s))[1])
    for step in (0, 17_968, 999_999):
        order = mixed_order(split, {"b": 0.1}, seed=0, num_streams=64)
        seeds.clear()
        assert len(order.local_samples(step, 256, 0, 1)) == 256
        assert len(seeds) <= 2 * (1 + 65) + 66  # of two sources, one of which begins a new pass


def test_weights_that_do_not_fit_are_refused():
    split = split_of(cats=[50], dogs=[30])
    with pytest.raises(
        DataError, match=r"data\.mix\.dog: no source .* allowed are cats, dogs; did"
    ):
        mixed_order(split, {"dog": 1.0}, seed=0, num_streams=1)
    order = mixed_order(split, {"dogs": 9.0}, seed=0, num_streams=1)
    with pytest.raises(DataError, match=r"data\.mix\.dogs: 36 of the 40 .* dogs, which has 30"):
        TrainBatches(order, global_batch=40, num_steps=1)
    plain = Split(shards=(Shard(name="a.tar", samples=9, bytes=512, sha256="0" * 64),), labelled={})
    with pytest.raises(DataError, match=r"data\.mix: given, but data\.shards is no mix"):
        mixed_order(plain, {"dogs": 1.0}, seed=0, num_streams=1)


def test_a_few_samples_are_equally_many_of_each_source():
    split = split_of(a=[900], b=[6], c=[50, 50])
    sources = source_of(split)
    chosen = spread_samples(split, 100)
    assert chosen == sorted(set(chosen))
    assert [[sources[n] for n in chosen].count(name) for name in "abc"] == [47, 6, 47]
    assert spread_samples(split, 10**6) == list(range(1006))
    plain = Split(shards=(Shard(name="a.tar", samples=9, bytes=512, sha256="0" * 64),), labelled={})
    assert spread_samples(plain, 4) == [0, 2, 4, 6]
