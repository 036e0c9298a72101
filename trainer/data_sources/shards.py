"""The data source `shards`: WebDataset shards with a manifest, indexed or streamed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from data_pipelines.reading.class_counts import class_counts
from data_pipelines.reading.collate import Batch
from data_pipelines.reading.fields import resolve_labels
from data_pipelines.shards.manifest import Manifest
from dmtg.plugins import register_data_source
from model.tasks.spec import TaskSpec
from trainer.config.config import Config
from trainer.errors import UserError
from trainer.health.watchdog import report_progress
from trainer.run_data import (
    build_eval_loader,
    build_train_loader,
    open_manifest,
    open_shards,
    steps_per_epoch,
)
from trainer.tasks import label_requests, resolve_tasks


@register_data_source("shards")
class ShardData:
    """`trainer.run_data.RunData` of the shards that the configuration names.

    Raises:
        UserError, DataError: Data or tasks cannot be used.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.manifest = open_manifest(config)
        self.tasks = resolve_tasks(config.tasks, self.manifest)
        self._check_labels()
        self.digest = self.manifest.digest()
        self.dataset = _describe(config, self.manifest)
        self.eval_samples = self.manifest.split(config.data.eval_split).num_samples
        self.train_samples: int | None = None
        if config.data.tar_urls is None:
            self.train_samples = self.manifest.split(config.data.train_split).num_samples

    def _check_labels(self) -> None:
        """Check that both splits have labels that the tasks can learn from."""
        data, requests = self._config.data, label_requests(self.tasks)
        train_split = data.train_split if data.tar_urls is None else None
        resolve_labels(self.manifest, train_split, requests, flip=data.flip)
        resolve_labels(self.manifest, data.eval_split, requests, flip=False)
        if data.mix is not None:  # errors of its weights, before anything is built
            steps_per_epoch(self._config, self.manifest)

    def steps_per_epoch(self) -> int:
        """See `RunData`."""
        return steps_per_epoch(self._config, self.manifest)

    def class_counts(self, tasks: Sequence[TaskSpec]) -> Mapping[str, Sequence[int]]:
        """See `CountsClasses`: from the manifest, else by one pass over the labels."""
        data = self._config.data
        if data.tar_urls is not None:
            raise UserError(
                f"task {tasks[0].name!r}: loss_options: 'auto' needs the number of labels of each "
                "class, and data.tar_urls are not counted; give numbers"
            )
        return class_counts(
            open_shards(self._config),
            self.manifest,
            data.train_split,
            label_requests(tuple(tasks)),
            workers=max(1, data.workers),
            skip_damaged=data.on_error == "replace",
            progress=self._config.log.progress,
            on_progress=partial(report_progress, "counting labels"),
        )

    def train_batches(
        self, start_step: int, end_step: int, *, rank: int, world_size: int
    ) -> Iterable[Batch]:
        """See `RunData`."""
        return build_train_loader(
            self._config,
            self.manifest,
            self.tasks,
            start_step=start_step,
            end_step=end_step,
            rank=rank,
            world_size=world_size,
        )

    def eval_batches(self, *, rank: int, world_size: int) -> Iterable[Batch]:
        """See `RunData`."""
        return build_eval_loader(
            self._config, self.manifest, self.tasks, rank=rank, world_size=world_size
        )

    def label_batches(self, limit: int) -> Iterable[Batch]:
        """See `trainer.run_data.LabelledData`; a stream has only the evaluation split."""
        data = self._config.data
        return build_eval_loader(
            self._config,
            self.manifest,
            self.tasks,
            rank=0,
            world_size=1,
            split=data.train_split if data.tar_urls is None else data.eval_split,
            limit=limit,
        )


def _describe(config: Config, manifest: Manifest) -> str:
    names = [config.data.eval_split]
    if config.data.tar_urls is None:
        names.insert(0, config.data.train_split)
    splits = [
        f"{name}: {split.num_samples} samples in {len(split.shards)} shards"
        for name, split in ((name, manifest.split(name)) for name in names)
    ]
    return f"{manifest.dataset} ({', '.join(splits)})"
