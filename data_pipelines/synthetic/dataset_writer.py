"""Write the splits of a dataset and its manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from data_pipelines.convert.tally import (
    STATISTICS_SPLIT,
    Moments,
    Tally,
    summed_class_counts,
    with_statistics,
)
from data_pipelines.errors import DataError
from data_pipelines.shards.encoded import EncodedSample
from data_pipelines.shards.manifest import MANIFEST_NAME, Field, Manifest, Split
from data_pipelines.shards.writer import ShardWriter


class DatasetWriter:
    """Write samples, count their labels and compute the statistics of regressions.

    Args:
        root: Empty or absent folder.
        fields: The fields that a sample can have; the writer sets mean and std of regressions.
        samples_per_shard: Number of samples in every shard but the last of a split.

    Raises:
        DataError: `root` already holds a dataset, which would be overwritten.
    """

    def __init__(self, root: Path, fields: Mapping[str, Field], samples_per_shard: int) -> None:
        if (root / MANIFEST_NAME).exists():
            raise DataError(
                f"{root / MANIFEST_NAME}: a data set is already here; name another folder"
            )
        self._root = root
        self._fields = dict(fields)
        self._samples_per_shard = samples_per_shard
        self._splits: dict[str, Split] = {}
        self._moments: dict[str, Moments] = {}

    def write_split(self, name: str, samples: Iterable[EncodedSample]) -> None:
        """Write all samples of one split."""
        tally = Tally(self._fields)
        with ShardWriter(self._root, name, self._samples_per_shard) as writer:
            for sample in samples:
                writer.write(sample.key, sample.members)
                tally.add(sample)
        labelled = dict(sorted(tally.labelled.items()))
        self._splits[name] = writer.split(
            labelled, summed_class_counts(self._fields, [tally.class_counts()])
        )
        if name == STATISTICS_SPLIT:
            self._moments = tally.moments()

    def finish(self, dataset: str, image: str) -> Manifest:
        """Write and return the manifest."""
        fields = self._fields | {
            name: with_statistics(self._fields[name], [moments])
            for name, moments in self._moments.items()
        }
        manifest = Manifest(dataset=dataset, image=image, fields=fields, splits=self._splits)
        manifest.save(self._root)
        return manifest
