"""The manifest of a mix, from the manifests of the data sets that it joins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_pipelines.convert.mixed_fields import FieldOf, difference, joined_field
from data_pipelines.convert.tally import MAX_CLASS_COUNTS, bounded_reasons
from data_pipelines.errors import DataError
from data_pipelines.shards.conversion import Conversion
from data_pipelines.shards.field import Field
from data_pipelines.shards.manifest import (
    MAX_ERRORS_SHOWN,
    SOURCE_NAME,
    Manifest,
    Shard,
    Source,
    Split,
    StoredField,
)
from data_pipelines.shards.sources import Folder
from dmtg.names import FILE_NAME_RULE, MAX_TEXT, is_file_name, shortened


@dataclass(frozen=True)
class Part:
    """One of the data sets to join.

    Attributes:
        name: Its name in the mix.
        named: Whether the user gave the name.
        prefixed: Whether its labels get the name as prefix.
        folder: Its files.
        manifest: Its manifest.
    """

    name: str
    named: bool
    prefixed: bool
    folder: Folder
    manifest: Manifest

    def field(self, name: str, image: str) -> str:
        """Return the name in the mix of one of its fields; the image of the mix is `image`."""
        if name == self.manifest.image:
            return image
        return f"{self.name}_{name}" if self.prefixed else name

    def source(self, shard: Shard) -> str:
        """Return the source of one of its shards: those of a mix stay apart."""
        if shard.source is None:
            return self.name
        return f"{self.name}_{shard.source}" if self.named else shard.source

    def shard(self, shard: Shard) -> Shard:
        """Return the entry of the mix for one of its shards."""
        own_name = shard.name.removeprefix(f"{shard.source}-")
        source = self.source(shard)
        return shard.model_copy(update={"name": f"{source}-{own_name}", "source": source})

    def sources(self, image: str) -> dict[str, Source]:
        """Return the entries of the mix for its sources."""
        origins = {
            self.source(shard): shard.source
            for split in self.manifest.splits.values()
            for shard in split.shards
        }
        return {
            name: Source(
                dataset=self.manifest.sources[origin].dataset if origin else self.manifest.dataset,
                fields={
                    self.field(field_name, image): _stored(field)
                    for field_name, field in self.manifest.fields_of(origin).items()
                },
            )
            for name, origin in origins.items()
        }


def default_name(manifest: Manifest) -> str:
    """Return the name in a mix of a data set that the user has not named."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", manifest.dataset)[:50].lstrip(".-") or "source"


def joined_manifest(parts: Sequence[Part]) -> Manifest:
    """Return the manifest of the mix, without its conversion.

    Args:
        parts: The data sets, with sources and shards of different names.

    Raises:
        DataError: Fields clash; all errors are in one message.
    """
    names = {part.manifest.image for part in parts}
    image = parts[0].manifest.image if len(names) > 1 else names.pop()
    fields = _joined_fields(parts, image)
    split_names = dict.fromkeys(name for part in parts for name in part.manifest.splits)
    return Manifest(
        dataset=shortened(" + ".join(part.name for part in parts), MAX_TEXT),
        image=image,
        fields=fields,
        splits={name: _joined_split(name, parts, fields, image) for name in split_names},
        sources={n: source for part in parts for n, source in part.sources(image).items()},
    )


def joined_conversion(
    parts: Sequence[Part], manifest: Manifest, arguments: Mapping[str, tuple[str, ...]]
) -> Conversion:
    """Return the record of the joining: what the conversions of the parts have left out, together.

    Args:
        parts: The data sets.
        manifest: That of the mix.
        arguments: Of the command.
    """
    skipped: list[Mapping[str, int]] = []
    missing: dict[str, list[Mapping[str, int]]] = {}
    for part in parts:
        if (conversion := part.manifest.conversion) is not None:
            skipped.append(conversion.skipped)
            for name, reasons in conversion.missing.items():
                missing.setdefault(part.field(name, manifest.image), []).append(reasons)
    return Conversion(
        source="mix",
        arguments=dict(arguments),
        digest=manifest.digest(),
        skipped=bounded_reasons(skipped),
        missing={name: bounded_reasons(reasons) for name, reasons in missing.items()},
    )


def check_sources(parts: Sequence[Part]) -> None:
    """Check that names of sources can be used, and that no name and no data set occurs twice.

    Raises:
        DataError: They cannot.
    """
    owners: dict[str, Part] = {}
    digests: set[str] = set()
    for part in parts:
        if part.manifest.digest() in digests:
            raise DataError(f"{part.folder.where('')}: the same data set as one before it")
        digests.add(part.manifest.digest())
        shards = [shard for split in part.manifest.splits.values() for shard in split.shards]
        if not shards:
            raise DataError(f"{part.folder.where('')}: the manifest has no split")
        for name in dict.fromkeys(map(part.source, shards)):
            if not re.fullmatch(SOURCE_NAME, name):
                raise DataError(
                    f"source {shortened(repr(name))}: allowed are 1 to 50 of A-Z a-z 0-9 _ . -, of "
                    "which the first is none of . -; name it, as in NAME=FOLDER"
                )
            first = owners.setdefault(name, part)
            if first is not part:
                raise DataError(
                    f"source {name!r}: the name of {first.folder.where('')} and of "
                    f"{part.folder.where('')}; name them, as in NAME=FOLDER"
                )


def _joined_fields(parts: Sequence[Part], image: str) -> dict[str, Field]:
    """Return the union of the fields; those of one name must describe one task."""
    holders: dict[str, list[FieldOf]] = {}
    errors = []
    for part in parts:
        for name, field in part.manifest.fields.items():
            new = part.field(name, image)
            if not is_file_name(new):
                errors.append(f"field {new!r} of {part.name}: must be {FILE_NAME_RULE}")
            holder = FieldOf(part.name, part.folder, part.manifest, name, field)
            holders.setdefault(new, []).append(holder)
    errors += filter(None, (difference(name, of_name) for name, of_name in holders.items()))
    if errors:
        more = len(errors) - MAX_ERRORS_SHOWN
        raise DataError(
            "\n".join(errors[:MAX_ERRORS_SHOWN] + ([f"and {more} more"] if more > 0 else []))
        )
    return {name: joined_field(of_name) for name, of_name in holders.items()}


def _joined_split(
    name: str, parts: Sequence[Part], fields: Mapping[str, Field], image: str
) -> Split:
    shards: list[Shard] = []
    labelled = dict.fromkeys(fields, 0)
    counts: dict[str, tuple[int, ...]] = {}
    unknown: set[str] = set()
    for part in parts:
        split = part.manifest.splits.get(name)
        if split is None:
            continue
        shards += map(part.shard, split.shards)
        for field_name in part.manifest.fields:
            new = part.field(field_name, image)
            labelled[new] += split.labelled.get(field_name, 0)
            of_field = split.class_counts.get(field_name)
            if of_field is not None:
                before = counts.get(new, (0,) * len(of_field))
                counts[new] = tuple(map(sum, zip(before, of_field, strict=True)))
            elif split.labelled.get(field_name, 0):
                unknown.add(new)  # they are counted when they are needed
    counts = {field: of_field for field, of_field in counts.items() if field not in unknown}
    if sum(map(len, counts.values())) > MAX_CLASS_COUNTS:
        counts = {}
    return Split(shards=tuple(shards), labelled=labelled, class_counts=counts)


def _stored(field: Field) -> StoredField:
    return StoredField(member=field.member, key=field.key, dtype=field.dtype, values=field.values)
