"""The samples of one split, by epoch and id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch.utils.data import Dataset

from data_pipelines.errors import DataError, SourceError
from data_pipelines.reading.fields import LabelRequest, resolve_labels
from data_pipelines.reading.order import FILLER
from data_pipelines.reading.samples import Sample, builders_by_source
from data_pipelines.shards.manifest import Manifest
from data_pipelines.shards.sources import Location
from data_pipelines.shards.store import ShardStore
from data_pipelines.transforms import Geometry

OnError = Literal["stop", "replace"]


class ShardDataset(Dataset[Sample]):
    """Samples of one split by (epoch, id).

    A sample's augmentation depends only on the seed, the epoch and its id, so it is the same in
    every worker and process.

    Args:
        location: Folder of the shards: a path, a URL, or the result of `open_folder`.
        manifest: Its manifest.
        split: Name of the split.
        requests: One per task, in the order of `Sample.valid`.
        geometry: Crop, resize and flip of the pictures.
        seed: Seed of the augmentation.
        on_error: `stop` raises on a damaged sample, `replace` returns a sample without labels
            that holds the error. A source that does not answer is no damage and always raises.

    Raises:
        DataError: A request cannot be met.
    """

    def __init__(
        self,
        location: Location,
        manifest: Manifest,
        split: str,
        requests: Sequence[LabelRequest],
        geometry: Geometry,
        seed: int = 0,
        on_error: OnError = "stop",
    ) -> None:
        self.labels = resolve_labels(manifest, split, requests, flip=geometry.flip)
        self._builders = builders_by_source(manifest, self.labels, geometry)
        self.builder = next(iter(self._builders.values()))  # of blank samples, equal for all
        self.store = ShardStore(location, manifest.split(split).shards)
        self.seed = seed
        self.on_error = on_error

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        """Return the sample of an (epoch, id) pair; id -1 returns a filler.

        Raises:
            DataError: The sample is damaged or has a value that its field does not allow.
            SourceError: A remote source does not answer.
        """
        epoch, sample_id = item
        if sample_id == FILLER:
            return self.builder.blank()
        try:
            return self._read(epoch, sample_id)
        except SourceError:
            raise
        except DataError as error:
            if self.on_error == "stop":
                raise
            return self.builder.blank(str(error))

    def _read(self, epoch: int, sample_id: int) -> Sample:
        builder = self._builders[self.store.shard(sample_id).source]
        key, members = self.store.read(sample_id, builder.members)
        rng = np.random.default_rng([self.seed, epoch, sample_id])
        try:
            return builder.build(key, members, rng)
        except DataError as error:
            raise DataError(f"{self.store.where(sample_id)}: sample {key}: {error}") from error
