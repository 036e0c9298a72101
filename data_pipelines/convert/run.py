"""Run a conversion: write the shards in parallel, each atomically; keep those of earlier runs."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from data_pipelines.convert.jobs import ConversionJobs, ShardJob
from data_pipelines.convert.shards import (
    WORK_FOLDER,
    ShardRecord,
    Source,
    finished_shard,
    written_shards,
)
from data_pipelines.convert.tally import (
    STATISTICS_SPLIT,
    bounded_reasons,
    summed_class_counts,
    with_statistics,
)
from data_pipelines.convert.unreadable import NegativeWords, check_readable
from data_pipelines.errors import DataError
from data_pipelines.progress import progress_bar
from data_pipelines.shards.conversion import Conversion
from data_pipelines.shards.manifest import MANIFEST_NAME, Field, Manifest, Split
from data_pipelines.shards.sources import LocalFolder
from data_pipelines.shards.writer import remove_partial_shards
from dmtg.files import atomic_write

logger = logging.getLogger(__name__)

LOCK_NAME = "lock"  # in the work folder
# Earlier versions wrote this file under the same name, so their conversions can be continued.
_ARGUMENTS_NAME = "plan.json"


def convert(
    root: Path,
    dataset: str,
    image: str,
    source: Source,
    jobs: ConversionJobs,
    *,
    workers: int,
    progress: bool,
    num_samples: int | None = None,
) -> Manifest:
    """Write the shards that do not exist yet, and the manifest when all do.

    Args:
        root: Folder of the shards; empty, absent or left by an earlier run with the same jobs.
        dataset: Name of the dataset.
        image: Field that is the input.
        source: Reads the samples.
        jobs: The samples of each shard.
        workers: Number of converting processes; 1 converts in this process.
        progress: Whether to show a progress bar.
        num_samples: Number of source samples, for the progress bar; None takes the references of
            the jobs, 0 shows no total.

    Raises:
        DataError: The folder holds another dataset or shards of another conversion, another
            process is converting into it, or no sample was left.
        UnreadableColumnsError: Labels were found for a field, and none of them could be read.
    """
    if (root / MANIFEST_NAME).exists():
        return finished(root, jobs)
    work = root / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    with locked(work):
        _check_arguments(work, jobs)
        remove_partial_shards(root)
        if num_samples is None:
            num_samples = sum(map(len, jobs.splits.values()))
        bar = progress_bar(num_samples, progress)
        with bar:
            records = _write_shards(root, source, list(jobs.shard_jobs()), workers, bar)
        manifest = _manifest(dataset, image, source.fields, jobs, records)
        manifest.save(root)
    shutil.rmtree(work)
    return manifest


def finished(root: Path, jobs: ConversionJobs) -> Manifest:
    """Return the manifest that an earlier run of the same jobs wrote.

    Raises:
        DataError: It was written by another conversion.
    """
    manifest = Manifest.load(root)
    if manifest.conversion is None or manifest.conversion.digest != jobs.digest():
        raise DataError(
            f"{root / MANIFEST_NAME}: a data set is already here, from other arguments or another "
            "source; name another folder"
        )
    logger.info("%s: already complete", root)
    shutil.rmtree(root / WORK_FOLDER, ignore_errors=True)
    return manifest


def _write_shards(
    root: Path, source: Source, shard_jobs: list[ShardJob], workers: int, bar: tqdm
) -> list[ShardRecord]:
    """Write the shards that have no record yet; return the records of all, in order."""
    sizes = LocalFolder(root).sizes()
    records = {
        job.name: record for job in shard_jobs if (record := finished_shard(root, job, sizes))
    }
    if records:
        logger.info("%s: %d of %d shards are already there", root, len(records), len(shard_jobs))
    bar.initial = sum(record.num_sources for record in records.values())
    bar.reset(bar.total)
    bar.update(bar.initial)
    todo = [job for job in shard_jobs if job.name not in records]
    negatives = NegativeWords()
    for record in records.values():
        negatives.add(record.negatives)
    with written_shards(root, source, todo, workers, bar.update) as written:
        for job, record in zip(todo, written, strict=True):
            records[job.name] = record
            negatives.add(record.negatives)
    return [records[job.name] for job in shard_jobs]


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Hold the work folder for this process; the system releases the lock if it is killed."""
    lock = FileLock(work / LOCK_NAME, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise DataError(f"{work}: another process is converting into this folder") from error
    try:
        yield
    finally:
        lock.release()


def _check_arguments(work: Path, jobs: ConversionJobs) -> None:
    """Compare the arguments with those of the first run, which are recorded in the work folder."""
    path = work / _ARGUMENTS_NAME
    named = {"source": jobs.source, "samples_per_shard": jobs.samples_per_shard}
    current = json.loads(json.dumps({**named, **jobs.arguments, "digest": jobs.digest()}))
    text = path.read_text() if path.exists() else ""
    if not text:
        with atomic_write(path) as file:
            json.dump(current, file)
    elif (recorded := _parsed(text)) != current:
        raise DataError(f"{work}: {_difference(recorded, current)}; {_ADVICE}")


_CORRECT = "\ncorrect the source or its mapping, and remove the folder of shards"
_ADVICE = "use the arguments of the first run, or remove the folder of shards"


def _parsed(text: str) -> dict[str, object]:
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}


def _difference(recorded: dict[str, object], current: dict[str, object]) -> str:
    changed = [
        f"{name} is {current.get(name)!r}, was {recorded.get(name)!r}"
        for name in sorted({*recorded, *current} - {"digest"})
        if current.get(name) != recorded.get(name)
    ]
    return "begun with other arguments: " + ("; ".join(changed) or "the source's files changed")


def _manifest(
    dataset: str,
    image: str,
    fields: Mapping[str, Field],
    jobs: ConversionJobs,
    records: list[ShardRecord],
) -> Manifest:
    splits = {}
    for name in jobs.splits:
        of_split = [record for record in records if record.split == name]
        shards = tuple(record.shard for record in of_split if record.shard)
        if shards:
            counts = _summed(record.labelled for record in of_split)
            splits[name] = Split(
                shards=shards,
                labelled={field: counts.get(field, 0) for field in fields},
                class_counts=summed_class_counts(fields, [r.class_counts for r in of_split]),
            )
    skipped = _summed([jobs.skipped, *(record.skipped for record in records)])
    if not splits:
        raise DataError(f"{dataset}: no sample was left: {skipped}")
    train = [record for record in records if record.split == STATISTICS_SPLIT]
    parts = [jobs.missing, *(record.missing for record in records)]
    missing = {
        name: reasons
        for name in fields
        if (reasons := bounded_reasons(part.get(name, {}) for part in parts))
    }
    check_readable(_summed(record.labelled for record in records), missing, _CORRECT)
    return Manifest(
        dataset=dataset,
        image=image,
        fields={
            name: with_statistics(field, (r.moments[name] for r in train if name in r.moments))
            for name, field in fields.items()
        },
        splits=splits,
        conversion=Conversion(
            source=jobs.source,
            arguments=dict(jobs.arguments),
            digest=jobs.digest(),
            skipped=skipped,
            missing=missing,
        ),
    )


def _summed(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(sorted(total.items()))
