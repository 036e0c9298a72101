"""Loaders: the same batches for any number of workers and processes, and readable errors."""

import os
import shutil

import pytest
import torch

from data_pipelines.errors import DataError
from data_pipelines.reading.loader import epoch_order, eval_loader, train_loader
from data_pipelines.transforms import Geometry

GEOMETRY = Geometry((6, 6), crop=0.5, flip=True)


def train(shards, geometry=GEOMETRY, **options):
    options = {"seed": 7, "global_batch": 8, "num_steps": 9} | options
    return train_loader(shards.root, shards.manifest, shards.requests, geometry, **options)


def content(batch):
    """Return all values of a batch in comparable form."""
    tensors = {"images": batch.images, "scalars": batch.scalars, "valid": batch.valid_rows}
    return batch.keys, {name: t.tolist() for name, t in (tensors | batch.dense).items()}


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_what_is_trained_on(shards, workers):
    alone = [content(batch) for batch in train(shards)]
    assert len(alone) == 9
    assert [content(batch) for batch in train(shards, workers=workers)] == alone


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_what_is_evaluated(shards, workers):
    def batches(workers):
        return [
            content(batch)
            for batch in eval_loader(
                shards.root,
                shards.manifest,
                shards.requests,
                (8, 12),
                batch_size=4,
                workers=workers,
            )
        ]

    assert batches(workers) == batches(0)


def test_resuming_gives_the_tail_with_its_augmentation(shards):
    whole = [content(batch) for batch in train(shards)]
    assert [content(batch) for batch in train(shards, start_step=5)] == whole[5:]


def test_processes_and_accumulation_share_one_global_batch(shards):
    alone = torch.cat([batch.images for batch in train(shards)])
    parts = [
        list(train(shards, rank=rank, world_size=2, gradient_accumulation_steps=2))
        for rank in range(2)
    ]
    joined = [
        batch.images
        for step in range(9)
        for rank in range(2)
        for batch in parts[rank][step * 2 : step * 2 + 2]
    ]
    assert {len(images) for images in joined} == {2}
    assert torch.equal(torch.cat(joined), alone)


def test_evaluation_covers_the_split_over_processes(shards):
    loaders = [
        eval_loader(
            shards.root,
            shards.manifest,
            shards.requests,
            (8, 12),
            batch_size=3,
            rank=rank,
            world_size=2,
        )
        for rank in range(2)
    ]
    batches = [list(loader) for loader in loaders]
    assert len(batches[0]) == len(batches[1]) == 2
    keys = [key for rank in batches for batch in rank for key in batch.keys]
    assert sorted(filter(None, keys)) == sorted(f"val{n}" for n in range(11))
    assert keys.count("") == 1


def test_evaluation_limit(shards):
    loader = eval_loader(
        shards.root, shards.manifest, shards.requests, (8, 12), batch_size=2, limit=3
    )
    assert [batch.keys for batch in loader] == [("val0", "val3"), ("val7", "")]


def test_global_random_state_does_not_change(shards):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(train(shards, num_steps=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_epoch_order_takes_default_or_given_streams(shards):
    split = shards.manifest.split("train")
    order = epoch_order(split, seed=0, global_batch=12, num_streams=None)
    assert (order.num_streams, order.shard_sizes, order.steps_per_epoch(12)) == (
        4,
        (10, 10, 10, 7),
        3,
    )
    assert epoch_order(split, seed=0, global_batch=12, num_streams=6).num_streams == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_reaches_the_main_process_as_a_readable_error(shards, tmp_path, workers):
    shutil.copytree(shards.root, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "train-000002.tar"
    os.truncate(path, 1024)
    loader = train_loader(
        tmp_path,
        shards.manifest,
        shards.requests,
        GEOMETRY,
        seed=0,
        global_batch=8,
        num_steps=4,
        workers=workers,
    )
    with pytest.raises(DataError) as caught:
        list(loader)
    size = shards.manifest.split("train").shards[2].bytes
    assert str(caught.value) == f"{path}: truncated shard: 1024 bytes, manifest says {size}"


def test_a_split_smaller_than_a_batch(shards):
    with pytest.raises(DataError, match=r"data\.global_batch: 64 is more than the split's 37"):
        train(shards, global_batch=64)
