"""The converter for data that the `datasets` library streams: the hub, parquet, image folders.

A stream has no random access. Its samples are first written to shards in the order of the source,
then read from these in random order and written to the final shards.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data_pipelines.convert.columns import SCALARS_MEMBER, ColumnReader, read_columns
from data_pipelines.convert.dataset_files import DatasetFiles
from data_pipelines.convert.jobs import ConversionJobs, shuffled
from data_pipelines.convert.mapping import FieldMap
from data_pipelines.convert.options import ConversionOptions
from data_pipelines.convert.run import convert, finished
from data_pipelines.convert.shards import WORK_FOLDER
from data_pipelines.convert.splits import (
    TRAIN,
    VAL,
    check_val_share,
    group_hash,
    val_groups,
)
from data_pipelines.convert.streamed_dataset import StreamedDataset
from data_pipelines.convert.tally import Tally
from data_pipelines.decode.codecs import decode_json
from data_pipelines.errors import DataError
from data_pipelines.reading.values import value_text
from data_pipelines.shards.encoded import EncodedSample, Storage
from data_pipelines.shards.manifest import MANIFEST_NAME, Field, Manifest
from data_pipelines.shards.store import ShardStore

logger = logging.getLogger(__name__)

_STREAMED = "streamed"
_SPLIT_NAMES = {"validation": "val"}  # name on the hub -> name in the manifest
_GROUP_MARK = "@"  # in the key of a stored sample, before the hash of its group


@dataclass(frozen=True)
class _StreamedRows:
    """Read parts of a streamed dataset; a reference is `SPLIT/PART`."""

    stream: StreamedDataset
    splits: Mapping[str, str]
    reader: ColumnReader
    group_by: str | None

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.reader.fields

    def samples(self, refs: Sequence[str], tally: Tally) -> Iterator[EncodedSample]:
        for ref in refs:
            split, _, part = ref.partition("/")
            rows = self.stream.rows(self.splits[split], part, self.reader.pictures)
            for number, row in rows:
                key = f"{split}-{number}"
                if self.group_by is not None:
                    key += _GROUP_MARK + group_hash(value_text(row[self.group_by]) or key)
                sample = self.reader.sample(key, row, tally)
                if sample is not None:
                    yield sample


@dataclass(frozen=True)
class _StoredSamples:
    """Read samples of shards; a reference is `SPLIT/ID`."""

    root: Path
    fields: Mapping[str, Field]

    def samples(self, refs: Sequence[str], tally: Tally) -> Iterator[EncodedSample]:  # noqa: ARG002
        manifest = Manifest.load(self.root)
        stores = {name: ShardStore(self.root, s.shards) for name, s in manifest.splits.items()}
        suffixes = frozenset(field.member for field in self.fields.values())
        for ref in refs:
            split, _, number = ref.partition("/")
            key, members = stores[split].read(int(number), suffixes)
            yield EncodedSample(
                key.partition(_GROUP_MARK)[0],
                members,
                decode_json(SCALARS_MEMBER, members.get(SCALARS_MEMBER, b"{}")),
            )


def write_huggingface(
    dataset: str, out: Path, field_map: FieldMap, options: ConversionOptions
) -> Manifest:
    """Write shards of a dataset that `datasets` streams; a rerun continues.

    Args:
        dataset: Name on the hub, or a local folder or parquet file.
        out: Folder of the shards; needs twice the space of the result during the conversion.
        field_map: The column of each field.
        options: Its tasks are fields of the map.

    Raises:
        DataError: The source, the map or `out` cannot be used.
    """
    stream = StreamedDataset(dataset, field_map.subset, options.seed, options.limit)
    splits = field_map.splits or {_SPLIT_NAMES.get(name, name): name for name in stream.splits()}
    _check_splits(stream, splits, field_map)
    features = stream.columns(next(iter(splits.values())))
    storage = Storage(options.portable)
    reader = read_columns(
        field_map, features, options.tasks, options.image_size, storage, DatasetFiles(dataset)
    )
    jobs = _streaming_jobs(stream, splits, reader, field_map, options)
    if (out / MANIFEST_NAME).exists():
        return finished(out, jobs)
    write = partial(
        convert,
        dataset=field_map.dataset or Path(dataset).stem,
        image=field_map.image,
        workers=options.workers,
        progress=options.progress,
    )
    streamed = out / WORK_FOLDER / _STREAMED
    rows = _StreamedRows(stream, splits, reader, field_map.group_by)
    counts = [stream.num_rows(source) for source in splits.values()]
    num_rows = sum(count or 0 for count in counts) if None not in counts else 0
    first = write(streamed, source=rows, jobs=jobs, num_samples=num_rows)
    assert first.conversion is not None, "convert() records itself"
    ids = _final_splits(streamed, first, field_map.val_share or 0)
    shuffling_jobs = replace(
        jobs,
        splits=shuffled(ids, seed=options.seed, limit=None),
        samples_per_shard=options.samples_per_shard,
        skipped=first.conversion.skipped,
        missing=first.conversion.missing,
        inherited_digest=jobs.digest(),
    )
    return write(out, source=_StoredSamples(streamed, reader.fields), jobs=shuffling_jobs)


def _check_splits(stream: StreamedDataset, splits: Mapping[str, str], field_map: FieldMap) -> None:
    if field_map.split_column is not None:
        raise DataError("split_column: only for tables; name the splits of a dataset by `splits`")
    for source in splits.values():
        stream.source_split(source)
    check_val_share(field_map.val_share, splits)
    for one, other in stream.overlaps(splits):
        logger.warning("splits %s and %s have rows in common: %s", one, other, splits)


def _final_splits(root: Path, manifest: Manifest, val_share: float) -> dict[str, list[str]]:
    """Return references to the stored samples by final split: a share of `train` becomes `val`."""
    ids = {
        name: [f"{name}/{number}" for number in range(split.num_samples)]
        for name, split in manifest.splits.items()
    }
    if not val_share:
        return ids
    store = ShardStore(root, manifest.split(TRAIN).shards)
    keys = (store.read(number, ())[0] for number in range(len(store)))
    groups = [key.partition(_GROUP_MARK)[2] or group_hash(key) for key in keys]
    chosen = val_groups(groups, val_share)
    return ids | {
        TRAIN: [ref for ref, group in zip(ids[TRAIN], groups, strict=True) if group not in chosen],
        VAL: [ref for ref, group in zip(ids[TRAIN], groups, strict=True) if group in chosen],
    }


def _streaming_jobs(
    stream: StreamedDataset,
    splits: Mapping[str, str],
    reader: ColumnReader,
    field_map: FieldMap,
    options: ConversionOptions,
) -> ConversionJobs:
    """Return the jobs that write one shard for each part of the streamed dataset."""
    tasks = [name for name in reader.fields if name != field_map.image]
    return ConversionJobs(
        source="huggingface",
        arguments={
            "dataset": stream.dataset,
            "map": field_map.model_dump_json(exclude_defaults=True),
            "samples_per_shard": options.samples_per_shard,
            **options.arguments(tasks),
        },
        splits={
            split: [f"{split}/{part}" for part in stream.parts(source, reader.pictures)]
            for split, source in splits.items()
        },
        samples_per_shard=1,
    )
