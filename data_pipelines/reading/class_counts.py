"""How many training labels each class has: from the manifest, or by one pass over the labels.

A manifest has the counts of scalar labels unless an earlier version wrote it. Other counts are made
once for all processes of a user: they are kept in `user_cache_folder("class_counts")` under a hash
of the manifest and of what is counted. The first process counts, the others of the machine wait.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from data_pipelines.decode.codecs import decode
from data_pipelines.errors import DataError, SourceError
from data_pipelines.parallel import mapped
from data_pipelines.progress import progress_bar
from data_pipelines.reading.fields import Label, LabelRequest, labels_of_source, resolve_labels
from data_pipelines.shards.cache import lock_between_processes, make_room, mark_used
from data_pipelines.shards.manifest import Manifest, Shard
from data_pipelines.shards.sources import Location
from data_pipelines.shards.store import ShardStore
from dmtg.files import atomic_write, user_cache_folder

logger = logging.getLogger(__name__)

MAX_KEPT_BYTES = 64 * 2**20
_LOCK = ".lock"
_WAIT_SECONDS = 5.0

Counts = dict[str, tuple[int, ...]]


def class_counts(
    location: Location,
    manifest: Manifest,
    split: str,
    requests: Sequence[LabelRequest],
    *,
    workers: int = 1,
    skip_damaged: bool = False,
    progress: bool = True,
    on_progress: Callable[[], None] = lambda: None,
) -> Counts:
    """Return the number of labels of each class in a split, by task; of dense labels the pixels.

    Args:
        location: Folder of the shards: a path, a URL, or the result of `open_folder`.
        manifest: Its manifest.
        split: Name of the split.
        requests: The tasks, with `num_classes`; classes that the field lacks have no labels.
        workers: Number of processes that count what the manifest does not have.
        skip_damaged: Whether a damaged sample is left out of the counts.
        progress: Whether to show a progress bar while labels are counted.
        on_progress: Called every few seconds while this or another process counts.

    Raises:
        DataError: A request cannot be met, or a sample is damaged.
    """
    labels = resolve_labels(manifest, split, requests, flip=False)
    known = manifest.split(split).class_counts
    counts = {
        label.task: _padded(known[label.request.field], label.request)
        for label in labels
        if label.request.field in known
    }
    missing = [label for label in labels if label.task not in counts]
    if not missing:
        return counts
    ranges = _ranges(manifest.split(split).shards)
    store = ShardStore(location, manifest.split(split).shards)
    sources = {shard.source for shard in store.shards}
    stored = {source: labels_of_source(manifest, missing, source) for source in sources}
    of_samples = partial(_count_samples, store, stored, skip_damaged)

    def count() -> Counts:
        names = ", ".join(label.task for label in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        logger.info("split %s: counting the classes of %s%s", split, names, more)
        totals = [np.zeros(label.request.num_classes or 0, np.int64) for label in missing]
        bar = progress_bar(len(store), progress, " samples")
        with bar, mapped(of_samples, ranges, workers) as results:
            for ids, result in zip(ranges, results, strict=True):
                totals = [total + part for total, part in zip(totals, result, strict=True)]
                bar.update(len(ids))
                on_progress()
        return {label.task: tuple(t.tolist()) for label, t in zip(missing, totals, strict=True)}

    content = {
        "manifest": manifest.digest(),
        "split": split,
        "skip_damaged": skip_damaged,
        "labels": [asdict(label.request) for label in missing],
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return counts | _kept(key, missing, count, on_progress)


def _kept(
    key: str, labels: Sequence[Label], count: Callable[[], Counts], on_progress: Callable[[], None]
) -> Counts:
    """Return kept counts; without them count, as the only process of the machine that does."""
    try:
        folder = user_cache_folder("class_counts")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{key}.json"
        with _waited_for(folder / f"{key[:2]}{_LOCK}", on_progress):
            counts = _load(path, labels)
            if counts is None:
                counts = count()
                _keep(path, counts)
            return counts
    except (OSError, NotImplementedError) as error:  # also a file system without locks
        logger.warning("the counts of the classes are not kept, each process counts: %s", error)
        return count()


@contextmanager
def _waited_for(path: Path, on_progress: Callable[[], None]) -> Iterator[None]:
    """Hold a lock between processes, however long another process holds it."""
    lock = lock_between_processes(path)
    while True:
        try:
            lock.acquire(timeout=_WAIT_SECONDS)
            break
        except Timeout:
            on_progress()
    try:
        yield
    finally:
        lock.release()


def _ranges(shards: Sequence[Shard]) -> list[range]:
    """Return the numbers of the samples of every shard."""
    ends = list(accumulate(shard.samples for shard in shards))
    return [range(end - shard.samples, end) for shard, end in zip(shards, ends, strict=True)]


def _padded(counts: Sequence[int], request: LabelRequest) -> tuple[int, ...]:
    assert request.num_classes is not None, "a task with classes"
    return (*counts, *[0] * (request.num_classes - len(counts)))


def _count_samples(
    store: ShardStore,
    labels_of: Mapping[str | None, Sequence[Label]],
    skip_damaged: bool,
    ids: range,
) -> list[NDArray[np.int64]]:
    """Return the number of labels of each class of the samples of a shard, for every label."""
    labels = labels_of[store.shard(ids[0]).source]
    members = frozenset(label.field.member for label in labels if not label.absent)
    totals = [np.zeros(label.request.num_classes or 0, np.int64) for label in labels]
    for sample in ids:
        try:
            key, contents = store.read(sample, members)
            try:
                decoded = {name: decode(name, data) for name, data in contents.items()}
                found = [_class_ids(label, decoded) for label in labels]
            except DataError as error:
                raise DataError(f"{store.where(sample)}: sample {key}: {error}") from error
        except SourceError:
            raise
        except DataError:
            if not skip_damaged:
                raise
            continue
        for total, of_label in zip(totals, found, strict=True):
            total += np.bincount(of_label, minlength=len(total))[: len(total)]
    return totals


def _class_ids(
    label: Label, decoded: Mapping[str, np.ndarray | dict[str, object]]
) -> NDArray[np.int64]:
    """Return the class ids of a label of a sample; none where it is missing."""
    none = np.zeros(0, np.int64)
    content = None if label.absent else decoded.get(label.field.member)
    if content is None:
        return none
    if isinstance(content, dict):
        value = label.scalar(content)
        return none if value is None else np.array([int(value)])
    label.check_picture(content)
    ids = content[0].astype(np.int64).ravel()
    return ids[(ids >= 0) & (ids != label.request.ignore_index)]


def _keep(path: Path, counts: Counts) -> None:
    data = json.dumps(counts).encode()
    make_room(path.parent, len(data), MAX_KEPT_BYTES, kept=(_LOCK,))
    with atomic_write(path, "wb") as file:
        file.write(data)


def _load(path: Path, labels: Sequence[Label]) -> Counts | None:
    """Return kept counts; None if there are none, or the file has other content."""
    try:
        with open(path, "rb") as file:
            kept = json.loads(file.read(MAX_KEPT_BYTES + 1))
        with suppress(OSError):  # a folder that cannot be written
            mark_used(path)
        counts = {label.task: tuple(kept[label.task]) for label in labels}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError):
        logger.warning("%s: is no file of counts; the labels are counted again", path)
        return None
    fits = (
        len(counts[label.task]) == label.request.num_classes
        and all(type(count) is int and count >= 0 for count in counts[label.task])
        for label in labels
    )
    return counts if all(fits) else None
