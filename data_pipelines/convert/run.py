"""Carries a conversion out: shards in parallel, each atomic, those of an earlier run kept."""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from data_pipelines.convert.jobs import Plan
from data_pipelines.convert.shards import (
    WORK_FOLDER,
    ShardRecord,
    Source,
    finished_shard,
    written_shards,
)
from data_pipelines.convert.tally import STATISTICS_SPLIT, with_statistics
from data_pipelines.errors import DataError
from data_pipelines.shards.conversion import Conversion
from data_pipelines.shards.manifest import MANIFEST_NAME, Field, Manifest, Split
from data_pipelines.shards.sources import LocalFolder

logger = logging.getLogger(__name__)


def convert(
    root: Path,
    dataset: str,
    image: str,
    source: Source,
    plan: Plan,
    *,
    workers: int,
    progress: bool,
) -> Manifest:
    """Writes the shards that are not there yet, and the manifest when all are.

    Args:
        root: Folder of the shards; empty, absent or left by an earlier run with the same plan.
        dataset: Name of the data set.
        image: Field that is the input.
        source: Where samples come from.
        plan: Which of them each shard takes.
        workers: Processes that convert; 1 converts in this one.
        progress: Whether to show a progress bar.

    Raises:
        DataError: The folder holds another data set or another plan's shards, another process
            is converting into it, or no sample was left.
    """
    if (root / MANIFEST_NAME).exists():
        return finished(root, plan)
    work = root / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    with _claimed(work, plan):
        jobs = list(plan.jobs())
        sizes = LocalFolder(root).sizes()
        records = {job.name: record for job in jobs if (record := finished_shard(root, job, sizes))}
        if records:
            logger.info("%s: %d of %d shards are already there", root, len(records), len(jobs))
        todo = [job for job in jobs if job.name not in records]
        with (
            tqdm(total=len(jobs), initial=len(records), disable=not progress, unit="shard") as bar,
            written_shards(root, source, todo, workers) as written,
        ):
            for job, record in zip(todo, written, strict=True):
                records[job.name] = record
                bar.update()
        ordered = [records[job.name] for job in jobs]
        manifest = _manifest(dataset, image, source.fields, plan, ordered)
        manifest.save(root)
    shutil.rmtree(work)
    for partial in root.glob("*.tar.partial"):
        partial.unlink()
    return manifest


def finished(root: Path, plan: Plan) -> Manifest:
    """The manifest that an earlier run of the plan left.

    Raises:
        DataError: It is another plan's.
    """
    manifest = Manifest.load(root)
    if manifest.conversion is None or manifest.conversion.digest != plan.digest():
        raise DataError(
            f"{root / MANIFEST_NAME}: a data set is already here, from other arguments or another "
            "source; name another folder"
        )
    logger.info("%s: already complete", root)
    shutil.rmtree(root / WORK_FOLDER, ignore_errors=True)
    return manifest


@contextmanager
def _claimed(work: Path, plan: Plan) -> Iterator[None]:
    """Holds the folder for this process and this plan."""
    with open(work / "plan.json", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{work}: another process is converting into this folder") from error
        file.seek(0)
        text = file.read()
        named = {"source": plan.source, "samples_per_shard": plan.samples_per_shard}
        mine = json.loads(json.dumps({**named, **plan.arguments, "digest": plan.digest()}))
        if not text:
            file.write(json.dumps(mine))
            file.flush()
        elif (theirs := _parsed(text)) != mine:
            raise DataError(f"{work}: {_difference(theirs, mine)}; {_ADVICE}")
        yield


_ADVICE = "use the arguments of the first run, or remove the folder of shards"


def _parsed(text: str) -> dict[str, object]:
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}


def _difference(theirs: dict[str, object], mine: dict[str, object]) -> str:
    changed = [
        f"{name} is {mine.get(name)!r}, was {theirs.get(name)!r}"
        for name in sorted({*theirs, *mine} - {"digest"})
        if mine.get(name) != theirs.get(name)
    ]
    return "begun with other arguments: " + ("; ".join(changed) or "the source's files changed")


def _manifest(
    dataset: str, image: str, fields: Mapping[str, Field], plan: Plan, records: list[ShardRecord]
) -> Manifest:
    splits = {}
    for name in plan.splits:
        of_split = [record for record in records if record.split == name]
        shards = tuple(record.shard for record in of_split if record.shard)
        if shards:
            counts = _summed(record.labelled for record in of_split)
            labelled = {field: counts.get(field, 0) for field in fields}
            splits[name] = Split(shards=shards, labelled=labelled)
    skipped = _summed([plan.skipped, *(record.skipped for record in records)])
    if not splits:
        raise DataError(f"{dataset}: no sample was left: {skipped}")
    train = [record for record in records if record.split == STATISTICS_SPLIT]
    missing = [plan.missing, *(record.missing for record in records)]
    return Manifest(
        dataset=dataset,
        image=image,
        fields={
            name: with_statistics(field, (r.moments[name] for r in train if name in r.moments))
            for name, field in fields.items()
        },
        splits=splits,
        conversion=Conversion(
            source=plan.source,
            arguments=dict(plan.arguments),
            digest=plan.digest(),
            skipped=skipped,
            missing={
                name: counts
                for name in fields
                if (counts := _summed(part.get(name, {}) for part in missing))
            },
        ),
    )


def _summed(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(sorted(total.items()))
