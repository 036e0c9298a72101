"""The manifest of a folder of shards: the fields of its samples and the shards of each split."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    FailFast,
    NonNegativeInt,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic import Field as Bound

from data_pipelines.errors import DataError, SourceError
from data_pipelines.shards.conversion import Conversion
from data_pipelines.shards.field import Dtype, Field, Frozen, Suffix, Values
from data_pipelines.shards.sources import Location, missing, open_folder, wrong_size
from dmtg.files import atomic_write
from dmtg.names import MAX_TEXT, check_file_name, shortened
from dmtg.suggestions import did_you_mean

MANIFEST_NAME = "manifest.json"
MAX_ERRORS_SHOWN = 10
MAX_ERRORS = 1000  # more are counted only: each takes about a kilobyte

# Of a manifest, which 37,000 shards reach. Its text alone bounds the memory little: a number takes
# two bytes of it and 32 of memory, an entry that is not allowed six and 600, for its error.
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_MANIFEST_VALUES = 2**20
MAX_MANIFEST_ENTRIES = 2**18  # of its objects
MAX_SHARD_BYTES = 2**41  # an index counts blocks of 512 bytes in 32 bits
MAX_INDEX_BYTES = 32 * 2**20  # more than a million members
MAX_SHARD_SAMPLES = MAX_SHARD_BYTES // 512  # each has a header at least

SHARD_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
ShardName = Annotated[str, StringConstraints(pattern=rf"^{SHARD_NAME}$")]
FileName = Annotated[str, AfterValidator(partial(check_file_name, "the name"))]
SOURCE_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,49}"  # it begins the names of the source's shards
SourceName = Annotated[str, StringConstraints(pattern=rf"^{SOURCE_NAME}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class IndexFile(Frozen):
    """The index file of a shard: size in bytes and content hash."""

    bytes: Annotated[int, Bound(gt=0, le=MAX_INDEX_BYTES)]
    sha256: Sha256


class Shard(Frozen):
    """One tar file: name in the folder, number of samples, size in bytes, content hash, index.

    In a mix it has the name of its source, too.
    """

    name: ShardName
    samples: Annotated[int, Bound(gt=0, le=MAX_SHARD_SAMPLES)]
    bytes: Annotated[int, Bound(gt=0, le=MAX_SHARD_BYTES)]
    sha256: Sha256
    index: IndexFile | None = None
    source: SourceName | None = None

    @model_serializer(mode="wrap")
    def _without_no_source(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave an absent source out: a data set that is no mix keeps its digest."""
        content: dict[str, Any] = serialize(self)
        if self.source is None:
            content.pop("source", None)
        return content


class StoredField(Frozen):
    """Where the samples of one source hold a field; the rest of its description is the mix's.

    Attributes:
        member, key, dtype, values: As of a `Field`.
    """

    member: Suffix
    key: str | None = None
    dtype: Dtype | None = None
    values: Values = Bound(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value not in (None, {})}


class Source(Frozen):
    """One of the data sets that a mix joins.

    Attributes:
        dataset: Its own name.
        fields: The fields that its samples can have, by their names in the mix.
    """

    dataset: Annotated[str, StringConstraints(max_length=MAX_TEXT)]
    fields: dict[FileName, StoredField]


ClassCounts = dict[str, Annotated[tuple[NonNegativeInt, ...], FailFast()]]


class Split(Frozen):
    """The shards of one split and the counts of its labels.

    Attributes:
        shards: The tar files.
        labelled: Number of samples that have a value, by field.
        class_counts: Number of samples of each class id, by binary or multiclass field; of a
            binary field those with 0 and with 1. Empty where they were not counted.
    """

    shards: Annotated[tuple[Shard, ...], FailFast()]
    labelled: dict[str, NonNegativeInt]
    class_counts: ClassCounts = Bound(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """Number of samples of all shards."""
        return sum(shard.samples for shard in self.shards)

    @model_serializer(mode="wrap")
    def _without_empty_counts(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        if not self.class_counts:
            content.pop("class_counts", None)
        return content

    @model_validator(mode="after")
    def _consistent(self) -> Split:
        if not self.shards:
            raise ValueError("shards (): at least one is needed")
        names = Counter(shard.name for shard in self.shards)
        twice = sorted(name for name, times in names.items() if times > 1)[:MAX_ERRORS_SHOWN]
        if twice:
            raise ValueError(f"shards {', '.join(twice)}: named more than once")
        total = self.num_samples
        errors = [
            f"labelled.{name} {count}: the split has {total} samples"
            for name, count in self.labelled.items()
            if count > total
        ]
        errors += [
            f"class_counts.{name}: sum {sum(counts)}, labelled.{name} is {self.labelled.get(name)}"
            for name, counts in self.class_counts.items()
            if sum(counts) != self.labelled.get(name)
        ]
        if errors:
            raise ValueError("; ".join(errors))
        return self


class Manifest(Frozen):
    """The description of a folder of shards, which is read before any shard is opened.

    Attributes:
        dataset: Name of the dataset.
        image: The field that is the input.
        fields: The fields that a sample can have, by name.
        splits: The shards, by split.
        sources: The data sets that were joined to this one, by name; empty if it is no mix.
        conversion: How the shards were converted; for information only.
        checksum: The digest when the file was written, which reveals damage.
    """

    format: Literal["dmtg-shards"] = "dmtg-shards"
    version: Literal[1] = 1
    dataset: Annotated[str, StringConstraints(max_length=MAX_TEXT)]
    image: str = "rgb"
    fields: dict[FileName, Field]
    splits: dict[FileName, Split]
    sources: dict[SourceName, Source] = Bound(default_factory=dict)
    conversion: Conversion | None = None
    checksum: Sha256 | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        errors = []
        field = self.fields.get(self.image)
        if field is None or field.kind != "image":
            images = sorted(n for n, f in self.fields.items() if f.kind == "image")
            errors.append(f"image {self.image!r}: must name a field of kind image, one of {images}")
        for split_name, split in self.splits.items():
            unknown = sorted(set(split.labelled) - set(self.fields))
            if unknown:
                errors.append(f"splits.{split_name}.labelled {unknown}: no such fields")
            errors += [
                f"splits.{split_name}.class_counts.{name}: {len(counts)} counts, the field has "
                f"{self.fields[name].num_classes} classes"
                for name, counts in split.class_counts.items()
                if name in self.fields and len(counts) != self.fields[name].num_classes
            ]
        errors += self._wrong_sources()
        if errors:
            raise ValueError("; ".join(errors))
        return self

    def _wrong_sources(self) -> list[str]:
        errors = []
        for name, source in self.sources.items():
            unknown = sorted(set(source.fields) - set(self.fields))
            if unknown:
                errors.append(f"sources.{name}.fields {unknown}: no such fields")
            elif self.image not in source.fields:
                errors.append(f"sources.{name}.fields: the image, {self.image!r}, is missing")
            else:
                errors += [
                    f"sources.{name}.fields.{field_name}: {error}"
                    for field_name, field in self.fields_of(name).items()
                    for error in field.errors()
                ]
        wrong = {
            f"splits.{split_name}.shards {shard.name}: source {shard.source!r}: "
            + (f"must be one of {sorted(self.sources)}" if self.sources else "there are none")
            for split_name, split in self.splits.items()
            for shard in split.shards
            if (shard.source is None) != (not self.sources)
            or (shard.source is not None and shard.source not in self.sources)
        }
        return errors + sorted(wrong)[:MAX_ERRORS_SHOWN]

    @model_serializer(mode="wrap")
    def _without_no_sources(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave absent sources out: a data set that is no mix keeps its digest."""
        content: dict[str, Any] = serialize(self)
        if not self.sources:
            content.pop("sources", None)
        return content

    @classmethod
    def load(cls, location: Location) -> Manifest:
        """Read `manifest.json` in a folder or under a URL.

        Raises:
            DataError: The file is absent, damaged or not a manifest; all errors are in one
                message.
        """
        folder = open_folder(location)
        where = folder.where(MANIFEST_NAME)
        try:
            text = folder.read(MANIFEST_NAME, MAX_MANIFEST_BYTES)
        except SourceError:
            raise
        except DataError as error:
            raise DataError(f"{error}; a folder of shards has a {MANIFEST_NAME}") from error
        _check_bounds(where, text)
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
        """Write `root/manifest.json`; a reader sees the old file or the complete new one.

        Raises:
            DataError: It is larger than `load` accepts.
        """
        content = self.model_copy(update={"checksum": self.digest()})
        text = content.model_dump_json(indent=1).encode() + b"\n"
        _check_bounds(str(root / MANIFEST_NAME), text)
        with atomic_write(root / MANIFEST_NAME, "wb") as file:
            file.write(text)

    def split(self, name: str) -> Split:
        """Return the split `name`.

        Raises:
            DataError: It does not exist.
        """
        if name not in self.splits:
            has = sorted(self.splits)
            raise DataError(
                f"split {name!r}: {self.dataset} has {', '.join(has)}{did_you_mean(name, has)}"
            )
        return self.splits[name]

    def fields_of(self, source: str | None) -> dict[str, Field]:
        """Return the fields that the samples of a source can have, as they are stored there.

        Args:
            source: That of a shard; None for all fields, where there are no sources.
        """
        if source is None:
            return dict(self.fields)
        return {
            name: self.fields[name].model_copy(update=dict(stored))
            for name, stored in self.sources[source].fields.items()
        }

    def image_member(self, source: str | None) -> str:
        """Return the member that holds the image in the samples of a source, see `fields_of`."""
        holder = self.fields if source is None else self.sources[source].fields
        return holder[self.image].member

    def digest(self) -> str:
        """Return the hex sha256 of all entries but those below, independent of formatting.

        Without `conversion`, and without the counts of classes, which follow from the shards: data
        sets that an earlier version converted have the same digest without them.
        """
        counts = {"__all__": {"class_counts"}}
        content = self.model_dump(
            mode="json", exclude={"conversion": True, "checksum": True, "splits": counts}
        )
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def check_shards(location: Location, split: Split) -> None:
    """Compare the sizes of shards and indexes with the manifest, without opening any.

    Files behind a URL that cannot be listed are compared when they are opened.

    Raises:
        DataError: Shards are missing or have another size.
    """
    folder = open_folder(location)
    sizes = folder.sizes()
    if sizes is None:
        return
    errors = []
    for name, recorded in _files(split):
        size = sizes.get(name)
        if size is None:
            errors.append(missing(folder.where(name)))
        elif size != recorded:
            errors.append(wrong_size(folder.where(name), size, recorded))
    if errors:
        raise DataError(_listed(errors))


def index_name(shard: str) -> str:
    """Return the name of a shard's index file."""
    return f"{shard}.index"


def _check_bounds(where: str, text: bytes) -> None:
    if len(text) > MAX_MANIFEST_BYTES:
        raise DataError(f"{where}: {len(text)} bytes, allowed are at most {MAX_MANIFEST_BYTES}")
    num_values = text.count(b",") + text.count(b"{") + text.count(b"[")
    if num_values > MAX_MANIFEST_VALUES:
        raise DataError(f"{where}: {num_values} values, allowed are at most {MAX_MANIFEST_VALUES}")
    num_entries = text.count(b":")
    if num_entries > MAX_MANIFEST_ENTRIES:
        raise DataError(
            f"{where}: {num_entries} entries, allowed are at most {MAX_MANIFEST_ENTRIES}"
        )


def _files(split: Split) -> Iterator[tuple[str, int]]:
    for shard in split.shards:
        yield shard.name, shard.bytes
        if shard.index is not None:
            yield index_name(shard.name), shard.index.bytes


def _listed(errors: list[str]) -> str:
    more = len(errors) - MAX_ERRORS_SHOWN
    return "\n".join(errors[:MAX_ERRORS_SHOWN] + ([f"and {more} more"] if more > 0 else []))


def _describe(path: str, error: ValidationError) -> str:
    if error.error_count() > MAX_ERRORS:
        return f"{path}: {error.error_count()} errors: not a manifest"
    errors = []
    for entry in error.errors(include_url=False):
        place = ".".join(str(part) for part in entry["loc"]) or "manifest"
        message = entry["msg"].removeprefix("Value error, ")
        # A cross-field check and a missing entry have the whole object as input: not a useful value
        if entry["type"] not in {"value_error", "missing", "json_invalid"}:
            message = f"{shortened(repr(entry['input']))}: {message}"
        errors.append(f"{path}: {place}: {message}")
    return _listed(errors)
