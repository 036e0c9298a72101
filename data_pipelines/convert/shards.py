"""One shard of a conversion: written by some process, recorded, and found again by a rerun."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ValidationError

from data_pipelines.convert.plan import ShardJob
from data_pipelines.convert.tally import Moments, Tally
from data_pipelines.encoded import EncodedSample
from data_pipelines.errors import DataError
from data_pipelines.manifest import Field, Shard, Split, check_shards, publish
from data_pipelines.writer import ShardFile

WORK_FOLDER = "conversion"


class Source(Protocol):
    """A data set to convert; every worker gets a pickled copy."""

    @property
    def fields(self) -> Mapping[str, Field]:
        """What a sample can have."""

    def samples(self, refs: Sequence[str], tally: Tally) -> Iterator[EncodedSample]:
        """The samples that the references stand for; what is left out is counted in `tally`."""


class ShardRecord(BaseModel):
    """What became of one shard; `shard` is None where no sample was left."""

    split: str
    shard: Shard | None
    labelled: dict[str, int]
    skipped: dict[str, int]
    missing: dict[str, dict[str, int]]
    moments: dict[str, Moments]


def finished_shard(root: Path, job: ShardJob) -> ShardRecord | None:
    """The record of a shard that an earlier run finished."""
    try:
        record = ShardRecord.model_validate_json(_record_path(root, job).read_bytes())
        if record.shard:
            check_shards(root, Split(shards=(record.shard,), labelled={}))
    except (FileNotFoundError, ValidationError, DataError):
        return None
    return record


def written_shards(
    root: Path, source: Source, jobs: Sequence[ShardJob], workers: int
) -> Iterator[tuple[str, ShardRecord]]:
    """Writes shards in this process or several and yields names and records as they come."""
    if workers == 1:
        for job in jobs:
            yield job.name, _write_shard(root, source, job)
        return
    # Spawned, not forked: the caller may hold threads, which a fork would leave locked.
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, _Worker.adopt, (root, source)) as pool:
        yield from pool.imap_unordered(_Worker.write, jobs)


class _Worker:
    """What a worker process is given once, so that a job carries no copy of it."""

    root: Path
    source: Source

    @classmethod
    def adopt(cls, root: Path, source: Source) -> None:
        cls.root, cls.source = root, source

    @classmethod
    def write(cls, job: ShardJob) -> tuple[str, ShardRecord]:
        return job.name, _write_shard(cls.root, cls.source, job)


def _write_shard(root: Path, source: Source, job: ShardJob) -> ShardRecord:
    tally = Tally(source.fields)
    file = ShardFile(root / job.name)
    try:
        for sample in source.samples(job.refs, tally):
            file.add(sample.key, sample.members)
            tally.add(sample)
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
        missing={name: dict(reasons) for name, reasons in tally.missing.items()},
        moments=tally.moments(),
    )
    path = _record_path(root, job)
    with open(path.with_suffix(".partial"), "wb") as record_file:
        record_file.write(record.model_dump_json().encode())
        publish(record_file, path)
    return record


def _record_path(root: Path, job: ShardJob) -> Path:
    return root / WORK_FOLDER / f"{job.name}.json"
