"""The data of a run: what a data source gives, and the loaders of shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import DataLoader

from data_pipelines.reading.collate import Batch
from data_pipelines.reading.loader import epoch_order, eval_loader, train_loader
from data_pipelines.reading.streaming import stream_batches
from data_pipelines.shards.cache import ShardCache
from data_pipelines.shards.manifest import Manifest, check_shards
from data_pipelines.shards.sources import Folder, open_folder
from data_pipelines.transforms import Geometry
from dmtg.plugins import DATA_SOURCES
from model.tasks.spec import TaskSpec
from trainer.config.config import Config
from trainer.errors import UserError
from trainer.tasks import label_requests

LABELLED_SAMPLES = 2048  # enough for a stable median, mean or most frequent class


class RunData(Protocol):
    """The data of a run.

    A data source is a class or function that takes the `Config` of a run and returns this;
    `dmtg.plugins.register_data_source` gives it the name that `data.source` refers to. It reads its
    options from `config.data.source_options`, and raises `UserError` where they or the data cannot
    be used.

    Attributes:
        tasks: The N tasks.
        train_samples: Number in the train split; None where the split has no end.
        eval_samples: Number in the evaluation split.
        digest: Differs between data sets; a checkpoint of another digest is refused.
        dataset: Name and size of the data set, for messages.
    """

    tasks: tuple[TaskSpec, ...]
    train_samples: int | None
    eval_samples: int
    digest: str
    dataset: str

    def steps_per_epoch(self) -> int:
        """Return the optimizer steps in which the train split is read once.

        Raises:
            UserError: The split has no end.
        """

    def train_batches(
        self, start_step: int, end_step: int, *, rank: int, world_size: int
    ) -> Iterable[Batch]:
        """Return the micro-batches of a process from `start_step` to before `end_step`.

        All micro-batches of a step follow each other. Those of a step are a function of the seed
        and the step, so that a resumed run reads what an uninterrupted one would.
        """

    def eval_batches(self, *, rank: int, world_size: int) -> Iterable[Batch]:
        """Return batches with every sample of the evaluation split once over all processes."""


@runtime_checkable
class CountsClasses(Protocol):
    """Data whose training labels are counted: tasks may set options of their losses to `auto`."""

    def class_counts(self, tasks: Sequence[TaskSpec]) -> Mapping[str, Sequence[int]]:
        """Return the number of training labels of each class, by task; every task has classes.

        Raises:
            UserError, DataError: They cannot be counted.
        """


@runtime_checkable
class LabelledData(Protocol):
    """What a data source may have besides `RunData`."""

    def label_batches(self, limit: int) -> Iterable[Batch]:
        """Return batches of at most `limit` samples, evenly spread over the train split."""


def label_batches(config: Config, data: RunData) -> Iterable[Batch]:
    """Return batches of the train split whose labels determine the best constant predictions.

    They are read by one process. Without `LabelledData.label_batches` they are the first batches
    that the run has trained on.
    """
    if isinstance(data, LabelledData):
        return data.label_batches(LABELLED_SAMPLES)
    steps = -(-LABELLED_SAMPLES // config.data.global_batch)
    return data.train_batches(0, steps, rank=0, world_size=1)


def open_data(config: Config) -> RunData:
    """Return the data of the source that `data.source` names.

    Raises:
        UserError, DataError: Data or tasks cannot be used.
    """
    try:
        source = DATA_SOURCES[config.data.source]
    except ValueError as error:
        raise UserError(f"data.source: {error}") from None
    data: RunData = source(config)
    return data


def open_manifest(config: Config) -> Manifest:
    """Read the manifest and check that the shards of both splits are whole.

    Raises:
        DataError: The manifest, a split or a shard is missing or damaged.
    """
    folder = open_shards(config)
    manifest = Manifest.load(folder)
    train = () if config.data.tar_urls is not None else (config.data.train_split,)
    for name in (*train, config.data.eval_split):
        check_shards(folder, manifest.split(name))
    return manifest


def open_shards(config: Config) -> Folder:
    """Return the folder of the shards, with its cache if there is one.

    Raises:
        UserError: The run's data are not shards.
    """
    data, cache = config.data, None
    if data.shards is None:
        raise UserError(f"data.shards: not given, the run reads from data.source {data.source!r}")
    if data.cache_dir is not None:
        cache = ShardCache(data.cache_dir, round(data.cache_gb * 1e9))
    return open_folder(data.shards, cache, data.retry_seconds)


def num_steps(config: Config, data: RunData) -> int:
    """Optimizer steps of the run until every task has one head.

    Raises:
        UserError: A stream has no epochs to count.
    """
    if config.run.steps is not None:
        return config.run.steps
    assert config.run.epochs is not None, "the section checks it"
    return max(1, round(config.run.epochs * data.steps_per_epoch()))


def finetune_steps(config: Config, data: RunData) -> int:
    """Optimizer steps of each phase of fine-tuning, 0 for none."""
    if not config.finetune.epochs:
        return config.finetune.steps
    return max(1, round(config.finetune.epochs * data.steps_per_epoch()))


def steps_per_epoch(config: Config, manifest: Manifest) -> int:
    """Optimizer steps in which the train split is read once.

    Raises:
        UserError: A stream has no end.
    """
    if config.data.tar_urls is not None:
        raise UserError("run.epochs: data.tar_urls has no end, give run.steps instead")
    order = epoch_order(
        manifest.split(config.data.train_split),
        seed=config.run.seed,
        global_batch=config.data.global_batch,
        num_streams=config.data.num_streams,
        mix=config.data.mix,
    )
    return order.steps_per_epoch(config.data.global_batch)


def build_train_loader(
    config: Config,
    manifest: Manifest,
    tasks: tuple[TaskSpec, ...],
    *,
    start_step: int,
    end_step: int,
    rank: int,
    world_size: int,
) -> Iterable[Batch]:
    """Micro-batches of this process from `start_step` to `end_step`."""
    data = config.data
    described = (
        manifest,
        label_requests(tasks),
        Geometry(data.image_size, crop=data.crop, flip=data.flip),
    )
    options: dict[str, Any] = {
        "seed": config.run.seed,
        "global_batch": data.global_batch,
        "num_steps": end_step,
        "rank": rank,
        "world_size": world_size,
        "gradient_accumulation_steps": config.optim.gradient_accumulation_steps,
        "start_step": start_step,
        "workers": data.workers,
        "on_error": data.on_error,
    }
    if data.tar_urls is not None:
        options["retry_seconds"] = data.retry_seconds
        return stream_batches(data.tar_urls, *described, **options)
    return train_loader(
        open_shards(config),
        *described,
        split=data.train_split,
        num_streams=data.num_streams,
        mix=data.mix,
        **options,
    )


def build_eval_loader(
    config: Config,
    manifest: Manifest,
    tasks: tuple[TaskSpec, ...],
    *,
    rank: int,
    world_size: int,
    workers: int | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> DataLoader[Batch]:
    """Every sample of the evaluation split once over all processes.

    Args:
        split: Another split, of which `limit` samples are read; damaged ones have no labels.
    """
    return eval_loader(
        open_shards(config),
        manifest,
        label_requests(tasks),
        config.data.image_size,
        batch_size=config.eval.batch_size,
        split=config.data.eval_split if split is None else split,
        rank=rank,
        world_size=world_size,
        limit=config.eval.limit if split is None else limit,
        workers=config.data.workers if workers is None else workers,
        on_error=config.data.on_error if split is None else "replace",
    )
