"""Write the manifest and the indexes of existing WebDataset shards."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.convert.mapping import FieldMap, described_field
from data_pipelines.convert.stored_values import StoredValues
from data_pipelines.convert.tally import (
    STATISTICS_SPLIT,
    Moments,
    bounded_reasons,
    moments_of,
    summed_class_counts,
    with_statistics,
)
from data_pipelines.convert.unreadable import NegativeWords, check_readable
from data_pipelines.decode.bounds import RECORDS
from data_pipelines.decode.codecs import decode_sample
from data_pipelines.errors import DataError
from data_pipelines.parallel import add_progress, mapped
from data_pipelines.progress import progress_bar
from data_pipelines.shards.conversion import Conversion
from data_pipelines.shards.index_file import write_index
from data_pipelines.shards.manifest import MANIFEST_NAME, Field, Manifest, Shard, Split
from data_pipelines.shards.store import ShardStore
from dmtg.files import PARTIAL_PREFIX, sha256_of
from dmtg.names import FILE_NAME_RULE, is_file_name
from dmtg.secrets import without_secrets_in

_NUMBERED = re.compile(r"(.*?)[-_.]?\d+\.tar")


@dataclass(frozen=True)
class _Counts:
    """What was found in one shard: its entry in the manifest, and its labels by field."""

    shard: Shard
    labelled: Mapping[str, int]
    moments: Mapping[str, Moments]
    class_counts: Mapping[str, Mapping[int, int]]
    meanings: Mapping[str, Mapping[str, float | None]]
    unreadable: Mapping[str, Mapping[str, int]]
    negatives: Mapping[str, set[str]]


def index_shards(
    root: Path, field_map: FieldMap, *, workers: int = 1, progress: bool = True
) -> Manifest:
    """Read all shards of a folder once, check them, and write their indexes and the manifest.

    Every tar, every scalar label and the pictures of each shard's first sample are checked. What a
    value stands for that is no label as it is, such as `yes`, is recorded in the manifest.

    Args:
        root: Folder of the shards, to which the indexes and the manifest are added.
        field_map: The member of each field. Without splits, shards whose names differ only in
            their number form a split of that name; names without letters form `train`.
        workers: Number of reading processes.
        progress: Whether to show a progress bar.

    Raises:
        DataError: A shard is damaged, or a manifest already exists.
        UnreadableColumnsError: No label of a field can be read.
    """
    if (root / MANIFEST_NAME).exists():
        raise DataError(f"{root / MANIFEST_NAME}: is already there; remove it to index anew")
    of_tables = [n for n in ("split_column", "val_share", "group_by") if getattr(field_map, n)]
    if of_tables:
        raise DataError(f"{', '.join(of_tables)}: existing shards stay as they are; use `splits`")
    fields = {
        name: described_field(f"fields.{name}", entry) for name, entry in field_map.fields.items()
    }
    shards = _shards_by_split(root, field_map.splits)
    for split in shards:
        if not is_file_name(split):
            raise DataError(f"{root}: split {split!r} of its shards: must be {FILE_NAME_RULE}")
    names = [name for of_split in shards.values() for name in of_split]
    counts = _counted(root, fields, field_map.image, names, workers, progress)
    unreadable = {
        name: reasons
        for name in fields
        if (reasons := bounded_reasons(c.unreadable.get(name, {}) for c in counts.values()))
    }
    labelled = {n: sum(c.labelled.get(n, 0) for c in counts.values()) for n in fields}
    check_readable(labelled, unreadable)
    manifest = Manifest(
        dataset=field_map.dataset or root.resolve().name,
        image=field_map.image,
        fields=_described(fields, counts, shards.get(STATISTICS_SPLIT, ())),
        splits={
            split: _split(fields, [counts[name] for name in of_split])
            for split, of_split in shards.items()
        },
        conversion=_conversion(field_map, counts, unreadable),
    )
    manifest.save(root)
    return manifest


def _counted(
    root: Path,
    fields: Mapping[str, Field],
    image: str,
    names: Sequence[str],
    workers: int,
    progress: bool,
) -> dict[str, _Counts]:
    """Return what was found in each shard, by name."""
    count = partial(_count, root, fields, image)
    counts, negatives = {}, NegativeWords()
    with (
        progress_bar(0, progress) as bar,
        mapped(count, names, workers, bar.update) as counted,
    ):
        for result in counted:
            negatives.add(result.negatives)
            counts[result.shard.name] = result
            bar.set_postfix_str(f"{len(counts)} of {len(names)} shards")
    return counts


def _split(fields: Mapping[str, Field], counts: Sequence[_Counts]) -> Split:
    return Split(
        shards=tuple(found.shard for found in counts),
        labelled={name: sum(found.labelled.get(name, 0) for found in counts) for name in fields},
        class_counts=summed_class_counts(fields, [found.class_counts for found in counts]),
    )


def _described(
    fields: Mapping[str, Field], counts: Mapping[str, _Counts], train: Sequence[str]
) -> dict[str, Field]:
    """Return the fields with the statistics of the train split and the meanings of values."""
    described = {}
    for name, field in fields.items():
        parts = (counts[shard].moments.get(name) for shard in train)
        field = with_statistics(field, (moments for moments in parts if moments))
        meanings = dict(field.values)
        for found in counts.values():
            meanings |= found.meanings.get(name, {})
        if meanings:
            StoredValues(name, field).check(meanings)
            field = field.model_copy(update={"values": meanings})
        described[name] = field
    return described


def _conversion(
    field_map: FieldMap,
    counts: Mapping[str, _Counts],
    unreadable: dict[str, dict[str, int]],
) -> Conversion:
    mapping = field_map.model_dump_json(exclude_defaults=True)
    digest = hashlib.sha256(mapping.encode())
    for found in counts.values():
        digest.update(found.shard.sha256.encode())
    return Conversion(
        source="index",
        arguments=without_secrets_in({"map": mapping}),
        digest=digest.hexdigest(),
        missing=unreadable,
    )


def _shards_by_split(root: Path, patterns: Mapping[str, str] | None) -> dict[str, list[str]]:
    unfinished = set(root.glob(f"{PARTIAL_PREFIX}*"))
    names = sorted(path.name for path in set(root.glob("*.tar")) - unfinished)
    if not names:
        raise DataError(f"{root}: no .tar files")
    shards: defaultdict[str, list[str]] = defaultdict(list)
    if patterns is None:
        for name in names:
            match = _NUMBERED.fullmatch(name)
            shards[(match[1] or STATISTICS_SPLIT) if match else name[: -len(".tar")]].append(name)
        return dict(shards)
    for split, pattern in patterns.items():
        shards[split] = [name for name in names if fnmatchcase(name, pattern)]
        if not shards[split]:
            raise DataError(f"{root}: splits.{split} {pattern!r}: none of {len(names)} shards fits")
    counts = Counter(name for of_split in shards.values() for name in of_split)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"{root}: shard {twice[0]} is in more than one of the splits")
    return dict(shards)


def _count(root: Path, fields: Mapping[str, Field], image: str, name: str) -> _Counts:
    path = root / name
    num_samples, index = write_index(path)
    if not num_samples:
        raise DataError(f"{path}: holds no sample")
    shard = Shard(
        name=name,
        samples=num_samples,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
        index=index,
    )
    labelled: Counter[str] = Counter()
    stored = {n: StoredValues(n, field) for n, field in fields.items() if field.is_scalar}
    for key, members, decoded in _decoded(ShardStore(root, [shard]), path, fields, image):
        try:
            labelled.update(_pictures(fields, members, decoded))
            for name, values in stored.items():
                if fields[name].member in members:
                    values.add(decoded[fields[name].member])
        except DataError as error:
            raise DataError(f"{path}: sample {key}: {error}") from error
        add_progress(1)
    labelled.update({name: len(values.labels) for name, values in stored.items()})
    labels = {name: values.labels for name, values in stored.items() if values.labels}
    return _Counts(
        shard,
        labelled,
        moments={n: moments_of(of) for n, of in labels.items() if fields[n].kind == "regression"},
        class_counts={
            name: Counter(map(int, values.labels))
            for name, values in stored.items()
            if fields[name].kind != "regression"
        },
        meanings={name: values.meanings for name, values in stored.items()},
        unreadable={name: values.unreadable for name, values in stored.items()},
        negatives={name: values.negatives for name, values in stored.items()},
    )


def _decoded(
    store: ShardStore, path: Path, fields: Mapping[str, Field], image: str
) -> Iterator[tuple[str, dict[str, bytes], dict[str, Any]]]:
    """Yield key, members and decoded members of the samples of one shard.

    The records of every sample are decoded, the pictures of the first.
    """
    suffixes = frozenset(field.member for field in fields.values())
    for number in range(len(store)):
        key, members = store.read(number, suffixes)
        if fields[image].member not in members:
            raise DataError(f"{path}: sample {key}: no member {fields[image].member} (the image)")
        chosen = {m: data for m, data in members.items() if number == 0 or _is_record(m)}
        try:
            yield key, members, decode_sample(fields[image].member, chosen)
        except DataError as error:
            raise DataError(f"{path}: sample {key}: {error}") from error


def _is_record(member: str) -> bool:
    return member.rpartition(".")[2] in RECORDS


def _pictures(
    fields: Mapping[str, Field], members: Mapping[str, bytes], decoded: Mapping[str, Any]
) -> list[str]:
    """Return the fields of pictures that a sample has.

    Raises:
        DataError: A label has another number of channels than its field.
    """
    present = [n for n, f in fields.items() if not f.is_scalar and f.member in members]
    for name in present:
        field = fields[name]
        picture = decoded.get(field.member)
        if field.kind != "image" and picture is not None and len(picture) != field.channels:
            raise DataError(
                f"{field.member}: {len(picture)} channels, field {name} has {field.channels}"
            )
    return present
