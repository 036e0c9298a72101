"""The order of samples: a permutation, the same for any number of processes, resumable."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.reading.order import EpochOrder, EvalBatches, TrainBatches, default_num_streams
from data_pipelines.shards.manifest import Field, IndexFile, Manifest, Shard, Split
from tests.batches import steps_of

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=8).map(tuple)
SEEDS = st.integers(0, 2**31)


@settings(max_examples=50, deadline=None)
@given(sizes=SIZES, seed=SEEDS, streams=st.integers(1, 8), block=st.integers(1, 50))
def test_an_epoch_visits_samples_at_most_once(sizes, seed, streams, block):
    order = EpochOrder(sizes, seed, streams, block)
    if not order.per_stream:
        return
    ids = np.concatenate([order.positions(3, s, 0, order.per_stream) for s in range(streams)])
    assert len(ids) == sum(sizes) // streams * streams
    assert len(set(ids.tolist())) == len(ids)
    assert ids.min() >= 0
    assert ids.max() < sum(sizes)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, block=st.integers(1, 50), data=st.data())
def test_any_range_is_a_slice_of_the_stream(seed, block, data):
    order = EpochOrder((50, 30, 41), seed, 4, block)
    whole = order.positions(1, 2, 0, order.per_stream)
    lo = data.draw(st.integers(0, order.per_stream - 1))
    hi = data.draw(st.integers(lo + 1, order.per_stream))
    np.testing.assert_array_equal(order.positions(1, 2, lo, hi), whole[lo:hi])


def test_positions_outside_the_stream_are_refused():
    order = EpochOrder((50,), 0, 4)
    with pytest.raises(ValueError, match="lo, hi: 10, 13 must be within the stream's 12"):
        order.positions(0, 0, 10, 13)


def test_epochs_and_seeds_differ_and_repeat():
    def ids(seed, epoch):
        return EpochOrder((100, 100), seed, 1).positions(epoch, 0, 0, 200).tolist()

    assert ids(0, 0) == ids(0, 0)
    orders = [ids(0, 0), ids(0, 1), ids(1, 0), ids(1, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(200)) for order in orders)


def test_going_back_to_an_epoch_gives_the_same_order():
    order = EpochOrder((100,), 0, 2)
    first = order.positions(0, 1, 0, 50)
    order.positions(1, 1, 0, 50)
    np.testing.assert_array_equal(order.positions(0, 1, 0, 50), first)


def test_shuffling_is_close_to_uniform():
    """Each sample's mean place over many epochs is near the middle."""
    order = EpochOrder((20, 30, 14), 5, 1)
    places = np.empty((400, 64))
    for epoch in range(400):
        places[epoch, order.positions(epoch, 0, 0, 64)] = np.arange(64)
    standard_error = np.sqrt((64**2 - 1) / 12 / 400)
    assert np.abs(places.mean(0) - 31.5).max() < 5 * standard_error


def test_no_sample_is_left_out_of_all_epochs():
    """One shard of 50 in 8 streams of 6 leaves two samples out of each epoch."""
    order = EpochOrder((50,), 0, 8)
    seen = set()
    for epoch in range(40):
        for stream in range(8):
            seen.update(order.positions(epoch, stream, 0, 6).tolist())
    assert seen == set(range(50))


def test_a_stream_reads_few_shards_at_a_time():
    order = EpochOrder((10,) * 100, 0, 2, block_size=20)
    for lo in range(0, 500, 20):
        assert len(set(order.positions(0, 1, lo, lo + 20) // 10)) <= 3


@settings(max_examples=25, deadline=None)
@given(sizes=SIZES.filter(lambda sizes: sum(sizes) >= 32), seed=SEEDS)
def test_steps_do_not_depend_on_processes_or_accumulation(sizes, seed):
    order = EpochOrder(sizes, seed, default_num_streams(16))
    expected = steps_of(order)
    for world_size in (1, 2, 4):
        for accumulation in (1, 2, 4):
            assert steps_of(order, world_size, accumulation) == expected


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, start=st.integers(0, 30), accumulation=st.sampled_from([1, 2]))
def test_resuming_at_any_step_gives_the_tail(seed, start, accumulation):
    sizes = (40, 25, 17)
    whole = steps_of(EpochOrder(sizes, seed, 4), 2, accumulation, num_steps=30)
    tail = steps_of(EpochOrder(sizes, seed, 4), 2, accumulation, start, num_steps=30)
    assert tail == whole[start:]


def test_epochs_follow_each_other_without_repeats_within():
    order = EpochOrder((40, 25, 17), 0, 4)  # 20 a stream, 4 a step: 5 steps an epoch
    assert order.steps_per_epoch(16) == 5
    steps = steps_of(order, num_steps=12)
    assert [{epoch for epoch, _ in step} for step in steps] == [{t // 5} for t in range(12)]
    for epoch in range(2):
        flat = [sample for step in steps[epoch * 5 : epoch * 5 + 5] for sample in step]
        assert len(set(flat)) == len(flat) == 80


@settings(max_examples=15, deadline=None)
@given(sizes=SIZES.filter(lambda sizes: sum(sizes) >= 32), seed=SEEDS, data=st.data())
def test_a_run_may_resume_with_other_numbers_of_processes(sizes, seed, data):
    """Each start of the run has a new order object, number of processes and accumulation."""
    streams = 8
    expected = steps_of(EpochOrder(sizes, seed, streams), num_steps=24)
    stops = sorted({0, 24, *data.draw(st.lists(st.integers(1, 23), max_size=4))})
    steps = []
    for start, stop in pairwise(stops):
        world_size = data.draw(st.sampled_from([1, 2, 4, 8]))
        accumulation = data.draw(st.sampled_from([1, 2]))
        order = EpochOrder(sizes, seed, streams)
        steps += steps_of(order, world_size, accumulation, start, num_steps=stop)
    assert steps == expected


SHARDS, PER_SHARD = 5000, 920  # 4.6 million samples


def test_a_step_anywhere_in_millions_of_samples_needs_few_permutations(monkeypatch):
    """One permutation of the shards and one block of each stream, however late the step."""
    seeds = []
    default_rng = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda s: (seeds.append(s), default_rng(s))[1])
    for start in (0, 1, 17_967, 17_968, 500_000, 876_543, 999_999):
        order = EpochOrder((PER_SHARD,) * SHARDS, 0, 64)
        batches = TrainBatches(order, global_batch=256, num_steps=10**6, start_step=start)
        seeds.clear()
        epoch, sample = next(iter(batches))[0]
        assert epoch == start // 17_968
        assert 0 <= sample < SHARDS * PER_SHARD
        assert len(seeds) == 1 + 64


def test_an_epoch_of_millions_is_a_permutation_for_any_number_of_processes():
    order = EpochOrder((PER_SHARD,) * SHARDS, 0, 64)
    epoch = np.concatenate([order.positions(5, s, 0, order.per_stream) for s in range(64)])
    assert len(epoch) == SHARDS * PER_SHARD
    assert (np.bincount(epoch, minlength=len(epoch)) == 1).all()
    whole = steps_of(order, num_steps=90_003, start_step=90_000, global_batch=256)
    for world_size in (2, 8, 64):
        again = EpochOrder((PER_SHARD,) * SHARDS, 0, 64)
        assert whole == steps_of(again, world_size, 1, 90_000, 90_003, global_batch=256)


MEASURE = """
import sys
from pathlib import Path
from data_pipelines.reading.loader import epoch_order
from data_pipelines.shards.manifest import Manifest
from data_pipelines.reading.order import EvalBatches, TrainBatches
from data_pipelines.shards.store import ShardStore

def megabytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

before = megabytes()
split = Manifest.load(Path(sys.argv[1])).split("train")
order = epoch_order(split, seed=0, global_batch=256, num_streams=None)
steps = iter(TrainBatches(order, global_batch=256, num_steps=10**6, start_step=765_432))
for _ in range(50):
    next(steps)
store = ShardStore(Path(sys.argv[1]), split.shards)
assert len(next(iter(EvalBatches(len(store), batch_size=1000)))) == 1000
print(megabytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_millions_of_samples_take_little_memory(tmp_path):
    """Manifest, order, both samplers and the store, in a process that has imported them before."""
    index = IndexFile(bytes=140_000, sha256="1" * 64)
    made = tuple(
        Shard(
            name=f"train-{n:06d}.tar",
            samples=PER_SHARD,
            bytes=10**8,
            sha256=f"{n:064x}",
            index=index,
        )
        for n in range(SHARDS)
    )
    split = Split(shards=made, labelled={"rgb": SHARDS * PER_SHARD})
    fields = {"rgb": Field(member="rgb.jpg", kind="image", channels=3)}
    Manifest(dataset="big", fields=fields, splits={"train": split}).save(tmp_path)
    root = Path(__file__).resolve().parents[4]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert float(done.stdout) < 50


@pytest.mark.parametrize(("global_batch", "num_streams"), [(256, 64), (24, 8), (7, 1), (64, 64)])
def test_default_num_streams(global_batch, num_streams):
    assert default_num_streams(global_batch) == num_streams


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"world_size": 3}, "data.global_batch: 16 must be a multiple of 3 processes x 1"),
        ({"gradient_accumulation_steps": 5}, "1 processes x 5 accumulated batches = 5"),
        ({"global_batch": 0}, "data.global_batch: 0 must be a multiple"),
        (
            {"global_batch": 24, "world_size": 3},
            "data.num_streams: 8 must be a multiple of the 3 processes and divide "
            "data.global_batch 24; allowed are [3, 6, 12, 24]",
        ),
        ({"global_batch": 20}, "data.num_streams: 8 must .* 20; allowed are [1, 2, 4, 5, 10, 20]"),
        (
            {"global_batch": 128},
            "data.global_batch: 128 is more than the split's 100 samples give in 8 streams of 12; "
            "at most 96 allowed",
        ),
    ],
)
def test_numbers_that_do_not_divide_are_refused(changes, expected):
    options = {"global_batch": 16, "num_steps": 4} | changes
    with pytest.raises(DataError) as caught:
        TrainBatches(EpochOrder((100,), 0, 8), **options)
    start, _, end = expected.partition(".*")
    assert start.strip() in str(caught.value)
    assert end.strip() in str(caught.value)


def test_start_step_must_be_in_the_run():
    with pytest.raises(ValueError, match="start_step: 5 must be between 0 and num_steps 4"):
        TrainBatches(EpochOrder((100,), 0, 8), global_batch=16, num_steps=4, start_step=5)


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(1, 200),
    batch_size=st.integers(1, 20),
    world_size=st.integers(1, 5),
    limit=st.none() | st.integers(1, 250),
)
def test_evaluation_visits_every_sample_once(num_samples, batch_size, world_size, limit):
    ranks = [
        list(
            EvalBatches(
                num_samples, batch_size=batch_size, rank=rank, world_size=world_size, limit=limit
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    items = [item for batches in ranks for batch in batches for item in batch]
    assert all(len(batch) == batch_size for batches in ranks for batch in batches)
    ids = [sample for epoch, sample in items if sample != -1]
    total = min(num_samples, limit or num_samples)
    assert len(ids) == len(set(ids)) == total
    assert set(ids) <= set(range(num_samples))
    assert len(items) - total < batch_size * world_size
    if total == num_samples:
        assert sorted(ids) == list(range(num_samples))


def test_a_limit_is_spread_over_the_split():
    batches = list(EvalBatches(100, batch_size=5, limit=5))
    assert batches == [[(0, 0), (0, 20), (0, 40), (0, 60), (0, 80)]]


def test_evaluation_sizes_must_be_positive():
    with pytest.raises(ValueError, match="batch_size: 0 must be at least 1"):
        EvalBatches(10, batch_size=0)
    with pytest.raises(ValueError, match="limit: 0 must be at least 1"):
        EvalBatches(10, batch_size=1, limit=0)
