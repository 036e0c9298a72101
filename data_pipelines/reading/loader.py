"""Loaders that yield the same batches whatever the number of workers."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader, Sampler

from data_pipelines.reading.collate import Batch, Collate
from data_pipelines.reading.dataset import OnError, ShardDataset
from data_pipelines.reading.fields import LabelRequest
from data_pipelines.reading.order import EpochOrder, EvalBatches, TrainBatches, default_streams
from data_pipelines.shards.manifest import Manifest, Split
from data_pipelines.shards.sources import Location
from data_pipelines.transforms import Geometry


def epoch_order(split: Split, *, seed: int, global_batch: int, streams: int | None) -> EpochOrder:
    """The order in which a split is trained on.

    Args:
        split: The manifest's entry.
        seed: Seed of the permutations.
        global_batch: Samples of an optimizer step.
        streams: Streams that the samples are cut into; None takes a default.
    """
    sizes = tuple(shard.samples for shard in split.shards)
    return EpochOrder(sizes, seed, default_streams(global_batch) if streams is None else streams)


def train_loader(
    location: Location,
    manifest: Manifest,
    requests: Sequence[LabelRequest],
    geometry: Geometry,
    *,
    seed: int,
    global_batch: int,
    num_steps: int,
    split: str = "train",
    streams: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    start_step: int = 0,
    workers: int = 0,
    on_error: OnError = "stop",
) -> DataLoader[Batch]:
    """Micro-batches of one process from `start_step` to the end of the run.

    Args:
        location: Folder of the shards.
        manifest: Its manifest.
        requests: What each task reads.
        geometry: What is done to the pictures.
        seed: Seed of order and augmentation.
        global_batch: Samples of an optimizer step, over all processes and micro-batches.
        num_steps: Optimizer steps of the whole run.
        split: Name of the split.
        streams: Streams of the order, a multiple of every world size the run may have.
        rank: This process.
        world_size: Number of processes.
        accumulation: Micro-batches of a process in one optimizer step.
        start_step: Optimizer steps already done.
        workers: Reading processes; 0 reads in this one.
        on_error: What a damaged sample does, as in `ShardDataset`.

    Raises:
        DataError: The requests cannot be met or the numbers do not divide as needed.
    """
    dataset = ShardDataset(location, manifest, split, requests, geometry, seed, on_error)
    order = epoch_order(
        manifest.split(split), seed=seed, global_batch=global_batch, streams=streams
    )
    batches = TrainBatches(
        order,
        global_batch=global_batch,
        num_steps=num_steps,
        rank=rank,
        world_size=world_size,
        accumulation=accumulation,
        start_step=start_step,
    )
    return _loader(dataset, batches, workers)


def eval_loader(
    location: Location,
    manifest: Manifest,
    requests: Sequence[LabelRequest],
    size: tuple[int, int],
    *,
    batch_size: int,
    split: str = "val",
    rank: int = 0,
    world_size: int = 1,
    limit: int | None = None,
    workers: int = 0,
    on_error: OnError = "stop",
) -> DataLoader[Batch]:
    """Every sample of a split once over all processes, resized without augmentation.

    Args:
        location: Folder of the shards.
        manifest: Its manifest.
        requests: What each task reads.
        size: Height and width of the pictures, in pixels.
        batch_size: Samples of a batch of one process.
        split: Name of the split.
        rank: This process.
        world_size: Number of processes.
        limit: Samples to read, evenly spread over the split; None for all.
        workers: Reading processes; 0 reads in this one.
        on_error: What a damaged sample does, as in `ShardDataset`.

    Raises:
        DataError: The requests cannot be met.
    """
    dataset = ShardDataset(location, manifest, split, requests, Geometry(size), on_error=on_error)
    batches = EvalBatches(
        len(dataset), batch_size=batch_size, rank=rank, world_size=world_size, limit=limit
    )
    return _loader(dataset, batches, workers)


def _loader(
    dataset: ShardDataset, batches: Sampler[list[tuple[int, int]]], workers: int
) -> DataLoader[Batch]:
    # Without a generator of its own an iterator would draw from the global random numbers
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=Collate(dataset.labels),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=ignore_sigterm,
    )


def ignore_sigterm(_worker: int) -> None:
    """Let a reading process go on when a cluster's SIGTERM, sent to all processes, asks for a stop.

    The main process decides when it stops, and needs its data until then.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
