"""The manifest of a folder of shards: which fields a sample has and which shards make a split."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import (
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from data_pipelines.errors import DataError, SourceError
from data_pipelines.shards.conversion import Conversion
from data_pipelines.shards.field import Field, Frozen
from data_pipelines.shards.sources import Location, missing, open_folder, wrong_size

MANIFEST_NAME = "manifest.json"
MAX_FAULTS_SHOWN = 10

ShardName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class IndexFile(Frozen):
    """The index beside a shard: its size in bytes and content hash."""

    bytes: PositiveInt
    sha256: Sha256


class Shard(Frozen):
    """One tar file: its name in the folder, samples, size in bytes, content hash and index."""

    name: ShardName
    samples: PositiveInt
    bytes: PositiveInt
    sha256: Sha256
    index: IndexFile | None = None


class Split(Frozen):
    """The shards of one split and, per field, how many of its samples carry a value."""

    shards: tuple[Shard, ...]
    labelled: dict[str, NonNegativeInt]

    @property
    def num_samples(self) -> int:
        """Samples over all shards."""
        return sum(shard.samples for shard in self.shards)

    @model_validator(mode="after")
    def _consistent(self) -> Split:
        if not self.shards:
            raise ValueError("shards (): at least one is needed")
        names = [shard.name for shard in self.shards]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"shards {', '.join(twice)}: named more than once")
        total = self.num_samples
        faults = [
            f"labelled.{name} {count}: the split has {total} samples"
            for name, count in self.labelled.items()
            if count > total
        ]
        if faults:
            raise ValueError("; ".join(faults))
        return self


class Manifest(Frozen):
    """Everything about a folder of shards that must be known before one is opened.

    Attributes:
        dataset: Name of the data set.
        image: The field that is the input.
        fields: What a sample can have, by name.
        splits: The shards, by split.
        conversion: How they were made, for readers of the file only.
        checksum: The digest at the time of writing, which shows damage.
    """

    format: Literal["dmtg-shards"] = "dmtg-shards"
    version: Literal[1] = 1
    dataset: str
    image: str = "rgb"
    fields: dict[str, Field]
    splits: dict[str, Split]
    conversion: Conversion | None = None
    checksum: Sha256 | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        faults = []
        field = self.fields.get(self.image)
        if field is None or field.kind != "image":
            images = sorted(n for n, f in self.fields.items() if f.kind == "image")
            faults.append(f"image {self.image!r}: must name a field of kind image, one of {images}")
        for split_name, split in self.splits.items():
            unknown = sorted(set(split.labelled) - set(self.fields))
            if unknown:
                faults.append(f"splits.{split_name}.labelled {unknown}: no such fields")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @classmethod
    def load(cls, location: Location) -> Manifest:
        """Reads `manifest.json` in a folder or under a URL.

        Raises:
            DataError: The file is absent, damaged or not a manifest; all its faults are in one
                message.
        """
        folder = open_folder(location)
        where = folder.where(MANIFEST_NAME)
        try:
            text = folder.read(MANIFEST_NAME)
        except SourceError:
            raise
        except DataError as error:
            raise DataError(f"{error}; a folder of shards has a {MANIFEST_NAME}") from error
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            raise DataError(_describe(where, error)) from error
        if manifest.checksum not in (None, manifest.digest()):
            raise DataError(
                f"{where}: checksum: {manifest.checksum} is not that of the content; delete the "
                "entry if the file was edited by hand, else it is damaged"
            )
        return manifest.model_copy(update={"checksum": None})

    def save(self, root: Path) -> None:
        """Writes `root/manifest.json`; a reader sees the old file or the whole new one."""
        path = root / MANIFEST_NAME
        with open(path.with_name(f"{MANIFEST_NAME}.partial"), "wb") as file:
            content = self.model_copy(update={"checksum": self.digest()})
            file.write(content.model_dump_json(indent=1).encode() + b"\n")
            publish(file, path)

    def split(self, name: str) -> Split:
        """The split called `name`.

        Raises:
            DataError: There is none.
        """
        if name not in self.splits:
            raise DataError(f"split {name!r}: {self.dataset} has {', '.join(sorted(self.splits))}")
        return self.splits[name]

    def digest(self) -> str:
        """Hex sha256 of the content but `conversion`, however the manifest is written."""
        content = self.model_dump(mode="json", exclude={"conversion", "checksum"})
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def publish(file: BinaryIO, path: Path) -> None:
    """Gives an open, completely written file its final name once it is on the disk."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(file.name, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_shards(location: Location, split: Split) -> None:
    """Compares the sizes of shards and indexes with the manifest; opens none.

    Files behind a URL that cannot be listed are compared when they are opened.

    Raises:
        DataError: Shards are missing or have another size.
    """
    folder = open_folder(location)
    sizes = folder.sizes()
    if sizes is None:
        return
    faults = []
    for name, recorded in _files(split):
        size = sizes.get(name)
        if size is None:
            faults.append(missing(folder.where(name)))
        elif size != recorded:
            faults.append(wrong_size(folder.where(name), size, recorded))
    if faults:
        raise DataError(_listed(faults))


def index_name(shard: str) -> str:
    """Name of the index beside a shard."""
    return f"{shard}.index"


def _files(split: Split) -> Iterator[tuple[str, int]]:
    for shard in split.shards:
        yield shard.name, shard.bytes
        if shard.index is not None:
            yield index_name(shard.name), shard.index.bytes


def _listed(faults: list[str]) -> str:
    more = len(faults) - MAX_FAULTS_SHOWN
    return "\n".join(faults[:MAX_FAULTS_SHOWN] + ([f"and {more} more"] if more > 0 else []))


def _describe(path: str, error: ValidationError) -> str:
    faults = []
    for fault in error.errors(include_url=False):
        place = ".".join(str(part) for part in fault["loc"]) or "manifest"
        message = fault["msg"].removeprefix("Value error, ")
        # A cross-field check and a missing entry have the whole object as input: not a useful value
        if fault["type"] not in {"value_error", "missing", "json_invalid"}:
            message = f"{fault['input']!r:.80}: {message}"
        faults.append(f"{path}: {place}: {message}")
    return _listed(faults)
