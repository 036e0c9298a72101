"""One shard of a conversion: written by a worker, recorded, and skipped by a rerun."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ValidationError

from data_pipelines.convert.jobs import ShardJob
from data_pipelines.convert.tally import Moments, Tally, bounded_reasons
from data_pipelines.parallel import add_progress, mapped
from data_pipelines.shards.encoded import EncodedSample
from data_pipelines.shards.manifest import Field, Shard, index_name
from data_pipelines.shards.writer import ShardFile
from dmtg.files import atomic_write

WORK_FOLDER = "conversion"


class Source(Protocol):
    """The dataset to convert; every worker gets a pickled copy."""

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields that a sample can have."""

    def samples(self, refs: Sequence[str], tally: Tally) -> Iterator[EncodedSample]:
        """Yield the samples of the references; count skipped samples and labels in `tally`."""


class ShardRecord(BaseModel):
    """The result of one shard job; `shard` is None where no sample was left."""

    split: str
    shard: Shard | None
    labelled: dict[str, int]
    skipped: dict[str, int]
    missing: dict[str, dict[str, int]]
    moments: dict[str, Moments]
    class_counts: dict[str, dict[int, int]] | None = None  # None: of an earlier version
    negatives: dict[str, list[str]] = {}

    @property
    def num_sources(self) -> int:
        """Number of source samples, those that were skipped too."""
        return (self.shard.samples if self.shard else 0) + sum(self.skipped.values())


def finished_shard(root: Path, job: ShardJob, sizes: Mapping[str, int]) -> ShardRecord | None:
    """Return the record of a shard that an earlier run finished; None without one.

    Args:
        root: Folder of the shards.
        job: The shard.
        sizes: Bytes of every file in the folder.
    """
    try:
        record = ShardRecord.model_validate_json(_record_path(root, job).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return record if record.shard is None or _is_complete(record.shard, sizes) else None


def _is_complete(shard: Shard, sizes: Mapping[str, int]) -> bool:
    expected = {shard.name: shard.bytes}
    if shard.index:
        expected[index_name(shard.name)] = shard.index.bytes
    return all(sizes.get(name) == size for name, size in expected.items())


def written_shards(
    root: Path,
    source: Source,
    jobs: Sequence[ShardJob],
    workers: int,
    on_progress: Callable[[int], object],
) -> AbstractContextManager[Iterator[ShardRecord]]:
    """Write shards in one or several processes and yield their records in the jobs' order.

    Args:
        root: Folder of the shards.
        source: Reads the samples.
        jobs: The shards to write.
        workers: Number of processes.
        on_progress: Called with the number of further source samples that were read.
    """
    return mapped(partial(_write_shard, root, source), jobs, workers, on_progress)


def _write_shard(root: Path, source: Source, job: ShardJob) -> ShardRecord:
    tally = Tally(source.fields)
    file = ShardFile(root / job.name)
    try:
        done = 0
        for sample in source.samples(job.refs, tally):
            file.add(sample.key, sample.members)
            tally.add(sample)
            now = file.samples + tally.skipped.total()
            add_progress(now - done)
            done = now
        add_progress(file.samples + tally.skipped.total() - done)
    except BaseException:
        file.discard()
        raise
    shard = file.finish() if file.samples else None
    if shard is None:
        file.discard()
    record = ShardRecord(
        split=job.split,
        shard=shard,
        labelled=tally.labelled,
        skipped=tally.skipped,
        missing={name: bounded_reasons([reasons]) for name, reasons in tally.missing.items()},
        moments=tally.moments(),
        class_counts=tally.class_counts(),
        negatives={name: sorted(words) for name, words in tally.negatives.items()},
    )
    with atomic_write(_record_path(root, job)) as record_file:
        record_file.write(record.model_dump_json())
    return record


def _record_path(root: Path, job: ShardJob) -> Path:
    return root / WORK_FOLDER / f"{job.name}.json"
