"""Write the manifest and the indexes of existing WebDataset shards."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipelines.convert.mapping import FieldMap, described_field
from data_pipelines.convert.tally import STATISTICS_SPLIT, Moments, moments_of, with_statistics
from data_pipelines.decode.bounds import RECORDS
from data_pipelines.decode.codecs import decode_sample
from data_pipelines.errors import DataError
from data_pipelines.parallel import mapped
from data_pipelines.reading.fields import Label, LabelRequest
from data_pipelines.shards.index_file import write_index
from data_pipelines.shards.manifest import MANIFEST_NAME, Field, Manifest, Shard, Split
from data_pipelines.shards.store import ShardStore
from dmtg.files import PARTIAL_PREFIX
from dmtg.names import FILE_NAME_RULE, is_file_name

_NUMBERED = re.compile(r"(.*?)[-_.]?\d+\.tar")
_CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class _Counts:
    """The manifest's entry, label counts and moments of one shard."""

    shard: Shard
    labelled: Mapping[str, int]
    moments: Mapping[str, Moments]


def index_shards(
    root: Path, field_map: FieldMap, *, workers: int = 1, progress: bool = True
) -> Manifest:
    """Read all shards of a folder once, check them, and write their indexes and the manifest.

    Every tar, every scalar label and the pictures of each shard's first sample are checked.

    Args:
        root: Folder of the shards, to which the indexes and the manifest are added.
        field_map: The member of each field. Without splits, shards whose names differ only in
            their number form a split of that name; names without letters form `train`.
        workers: Number of reading processes.
        progress: Whether to show a progress bar.

    Raises:
        DataError: A shard is damaged, a label is not allowed, or a manifest already exists.
    """
    if (root / MANIFEST_NAME).exists():
        raise DataError(f"{root / MANIFEST_NAME}: is already there; remove it to index anew")
    fields = {
        name: described_field(f"fields.{name}", entry) for name, entry in field_map.fields.items()
    }
    shards = _shards_by_split(root, field_map.splits)
    for split in shards:
        if not is_file_name(split):
            raise DataError(f"{root}: split {split!r} of its shards: must be {FILE_NAME_RULE}")
    names = [name for of_split in shards.values() for name in of_split]
    count = partial(_count, root, fields, field_map.image)
    with mapped(count, names, workers) as counted:
        bar = tqdm(counted, total=len(names), disable=not progress, unit="shard")
        counts = {result.shard.name: result for result in bar}
    splits = {
        split: Split(
            shards=tuple(counts[name].shard for name in of_split),
            labelled={
                field: sum(counts[name].labelled.get(field, 0) for name in of_split)
                for field in fields
            },
        )
        for split, of_split in shards.items()
    }
    train = [counts[name] for name in shards.get(STATISTICS_SPLIT, ())]
    manifest = Manifest(
        dataset=field_map.dataset or root.resolve().name,
        image=field_map.image,
        fields={
            name: with_statistics(field, (c.moments[name] for c in train if name in c.moments))
            for name, field in fields.items()
        },
        splits=splits,
    )
    manifest.save(root)
    return manifest


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
        sha256=_sha256(path),
        index=index,
    )
    values: defaultdict[str, list[float]] = defaultdict(list)
    for key, labels in _labels(ShardStore(root, [shard]), path, fields, image):
        if image not in labels:
            raise DataError(f"{path}: sample {key}: no member {fields[image].member} (the image)")
        for field_name, value in labels.items():
            values[field_name].append(value)
    labelled = {field_name: len(of_field) for field_name, of_field in values.items()}
    moments = {n: moments_of(v) for n, v in values.items() if fields[n].kind == "regression"}
    return _Counts(shard, labelled, moments)


def _labels(
    store: ShardStore, path: Path, fields: Mapping[str, Field], image: str
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield key and values of the samples of one shard, checked; a picture has the value 1."""
    suffixes = frozenset(field.member for field in fields.values())
    for number in range(len(store)):
        key, members = store.read(number, suffixes)
        try:
            pictures = number == 0
            chosen = {m: data for m, data in members.items() if pictures or _is_record(m)}
            decoded = decode_sample(fields[image].member, chosen)
            values = {name: _value(name, f, members, decoded) for name, f in fields.items()}
        except DataError as error:
            raise DataError(f"{path}: sample {key}: {error}") from error
        yield key, {name: value for name, value in values.items() if value is not None}


def _is_record(member: str) -> bool:
    return member.rpartition(".")[2] in RECORDS


def _value(
    name: str, field: Field, members: Mapping[str, bytes], decoded: Mapping[str, Any]
) -> float | None:
    """Return a scalar's value, 1 for a picture, None where the sample has none."""
    if field.member not in members:
        return None
    if field.is_scalar:
        return Label(LabelRequest(name, name), field).scalar(decoded[field.member])
    picture = decoded.get(field.member)
    if field.kind != "image" and picture is not None and len(picture) != field.channels:
        raise DataError(
            f"{field.member}: {len(picture)} channels, field {name} has {field.channels}"
        )
    return 1.0


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
