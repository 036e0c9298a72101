"""DataLoaders whose batches do not depend on the number of workers."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence

import torch
from torch.utils.data import DataLoader, Sampler

from data_pipelines.reading.collate import Batch, Collate
from data_pipelines.reading.dataset import OnError, ShardDataset
from data_pipelines.reading.fields import LabelRequest
from data_pipelines.reading.mixed_order import mixed_order
from data_pipelines.reading.order import (
    EpochOrder,
    EvalBatches,
    Order,
    TrainBatches,
    default_num_streams,
    spread_samples,
)
from data_pipelines.shards.manifest import Manifest, Split
from data_pipelines.shards.sources import Location
from data_pipelines.transforms import Geometry
from dmtg.terminal import protect_output


def epoch_order(
    split: Split,
    *,
    seed: int,
    global_batch: int,
    num_streams: int | None,
    mix: Mapping[str, float] | None = None,
) -> Order:
    """Return the sample order of a split for training.

    Args:
        split: The manifest's entry.
        seed: Seed of the permutations.
        global_batch: Samples of an optimizer step.
        num_streams: Number of streams of the order; None takes a default.
        mix: Relative weights of the sources of a mix; None takes every sample once in an epoch.

    Raises:
        DataError: The weights do not fit the split.
    """
    if num_streams is None:
        num_streams = default_num_streams(global_batch)
    if mix is not None:
        return mixed_order(split, mix, seed=seed, num_streams=num_streams)
    shard_sizes = tuple(shard.samples for shard in split.shards)
    return EpochOrder(shard_sizes, seed, num_streams)


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
    num_streams: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    gradient_accumulation_steps: int = 1,
    start_step: int = 0,
    workers: int = 0,
    on_error: OnError = "stop",
    mix: Mapping[str, float] | None = None,
) -> DataLoader[Batch]:
    """Return the loader of one process's micro-batches from `start_step` to the end of the run.

    Args:
        location: Folder of the shards.
        manifest: Its manifest.
        requests: The field that each task reads.
        geometry: Crop, resize and flip of the pictures.
        seed: Seed of order and augmentation.
        global_batch: Samples of an optimizer step, over all processes and micro-batches.
        num_steps: Optimizer steps of the whole run.
        split: Name of the split.
        num_streams: Number of streams of the order, a multiple of every world size that the run
            may have.
        rank: Number of this process.
        world_size: Number of processes.
        gradient_accumulation_steps: Micro-batches of a process in one optimizer step.
        start_step: Optimizer steps already done.
        workers: Number of reading processes; 0 reads in this process.
        on_error: Action for a damaged sample, as in `ShardDataset`.
        mix: As in `epoch_order`.

    Raises:
        DataError: A request cannot be met, the sizes are not divisible, or the weights of a mix do
            not fit.
    """
    dataset = ShardDataset(location, manifest, split, requests, geometry, seed, on_error)
    order = epoch_order(
        manifest.split(split),
        seed=seed,
        global_batch=global_batch,
        num_streams=num_streams,
        mix=mix,
    )
    batches = TrainBatches(
        order,
        global_batch=global_batch,
        num_steps=num_steps,
        rank=rank,
        world_size=world_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        start_step=start_step,
    )
    return _loader(dataset, batches, workers)


def eval_loader(
    location: Location,
    manifest: Manifest,
    requests: Sequence[LabelRequest],
    image_size: tuple[int, int],
    *,
    batch_size: int,
    split: str = "val",
    rank: int = 0,
    world_size: int = 1,
    limit: int | None = None,
    workers: int = 0,
    on_error: OnError = "stop",
) -> DataLoader[Batch]:
    """Return a loader of every sample of a split once over all processes, without augmentation.

    Args:
        location: Folder of the shards.
        manifest: Its manifest.
        requests: The field that each task reads.
        image_size: Height and width of the pictures, in pixels.
        batch_size: Samples of a batch of one process.
        split: Name of the split.
        rank: Number of this process.
        world_size: Number of processes.
        limit: Number of samples to read, see `spread_samples`; None for all.
        workers: Number of reading processes; 0 reads in this process.
        on_error: Action for a damaged sample, as in `ShardDataset`.

    Raises:
        DataError: A request cannot be met.
    """
    geometry = Geometry(image_size)
    dataset = ShardDataset(location, manifest, split, requests, geometry, on_error=on_error)
    chosen = None
    if manifest.sources and limit is not None:
        chosen = spread_samples(manifest.split(split), limit)
    batches = EvalBatches(
        len(dataset),
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        limit=limit,
        chosen=chosen,
    )
    return _loader(dataset, batches, workers)


def _loader(
    dataset: ShardDataset, batches: Sampler[list[tuple[int, int]]], workers: int
) -> DataLoader[Batch]:
    # Without `generator` each iterator would advance the global random state.
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=Collate(dataset.labels),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=start_worker,
    )


def start_worker(_worker: int) -> None:
    """Ignore SIGTERM and SIGINT in a reading process, and protect its log lines as the main one's.

    A cluster sends SIGTERM to all processes of a job, a terminal SIGINT to all of its group. The
    main process decides when to stop, and needs its data until then.
    """
    protect_output()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
