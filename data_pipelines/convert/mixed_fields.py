"""The fields of a mix: fields of one name in several data sets become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipelines.convert.tally import STATISTICS_SPLIT, Moments, moments_of, with_statistics
from data_pipelines.decode.codecs import decode
from data_pipelines.errors import DataError
from data_pipelines.reading.fields import Label, LabelRequest, labels_of_source
from data_pipelines.shards.field import Field
from data_pipelines.shards.manifest import Manifest
from data_pipelines.shards.sources import Folder
from data_pipelines.shards.store import ShardStore
from dmtg.names import shortened


@dataclass(frozen=True)
class FieldOf:
    """A field of one of the data sets that are joined.

    Attributes:
        source: Name of the data set in the mix.
        folder: Its files.
        manifest: Its manifest.
        name: Name of the field there.
        field: Its description.
    """

    source: str
    folder: Folder
    manifest: Manifest
    name: str
    field: Field

    def labelled(self, split: str) -> int:
        """Return the number of samples of a split that have the field."""
        entry = self.manifest.splits.get(split)
        return 0 if entry is None else entry.labelled.get(self.name, 0)

    @property
    def is_image(self) -> bool:
        """Whether it is the input of its data set."""
        return self.name == self.manifest.image


def difference(name: str, holders: Sequence[FieldOf]) -> str:
    """Return why the fields that get one name in the mix are not one task; empty if they are.

    Args:
        name: Their name in the mix.
        holders: The fields.
    """
    first = holders[0]
    for other in holders[1:]:
        if found := _difference(first, other):
            return (
                f"field {name!r}: not one task in {first.source} and {other.source}: {found}; "
                "convert one of them anew, or keep the tasks apart with --prefix "
                f"{first.source},{other.source} ({first.source}_{first.name}, "
                f"{other.source}_{other.name})"
            )
    return ""


def joined_field(holders: Sequence[FieldOf]) -> Field:
    """Return the field of a mix: one task of several data sets, or the image.

    Member, key and meanings of values are those of the first data set that has it: they are stored
    for each source.

    Raises:
        DataError: Labels have to be read for their mean, and cannot be.
    """
    field = holders[0].field.model_copy(
        update={
            "dtype": _common(holders, "dtype"),
            "channels": max(holder.field.channels for holder in holders),  # of images only
        }
    )
    if len(holders) == 1 or field.kind != "regression":
        return field
    return with_statistics(
        field.model_copy(update={"mean": None, "std": None}), _statistics(holders)
    )


def _common(holders: Sequence[FieldOf], attribute: str) -> object:
    """Return the value of an attribute that all fields have, None if they differ."""
    values = {getattr(holder.field, attribute) for holder in holders}
    return values.pop() if len(values) == 1 else None


def _difference(first: FieldOf, other: FieldOf) -> str:
    """Return in what two fields are different tasks; empty if they are one."""
    a, b = first.field, other.field
    if first.is_image != other.is_image:
        return "the input of one is no input of the other"
    if first.is_image:
        return ""
    if a.kind != b.kind:
        return f"kind {a.kind} and {b.kind}"
    if len(a.classes) != len(b.classes):
        return f"{len(a.classes)} and {len(b.classes)} classes"
    for number, (one, two) in enumerate(zip(a.classes, b.classes, strict=True)):
        if one != two:
            return f"class {number} is {shortened(repr(one))} and {shortened(repr(two))}"
    if a.on_flip != b.on_flip:
        return f"on_flip {a.on_flip} and {b.on_flip}"
    if a.is_scalar:
        return ""
    if a.channels != b.channels:
        return f"{a.channels} and {b.channels} channels"
    if a.dtype != b.dtype and a.dtype is not None and b.dtype is not None:
        return f"dtype {a.dtype} and {b.dtype}"
    if (a.mean, a.std) != (b.mean, b.std):
        return f"mean and std {a.mean}, {a.std} and {b.mean}, {b.std}"
    return ""


def _statistics(holders: Sequence[FieldOf]) -> list[Moments]:
    """Return number, mean and squared deviations of the training labels of each data set."""
    parts = []
    for holder in holders:
        count, field = holder.labelled(STATISTICS_SPLIT), holder.field
        if not count:
            continue
        if field.mean is not None and field.std is not None:
            parts.append((count, field.mean, field.std**2 * count))
        else:  # equal values, which have no deviation, are not described in the manifest
            parts.append(moments_of(_values(holder)))
    return parts


def _values(holder: FieldOf) -> list[float]:
    """Read the training labels of a scalar field.

    Raises:
        DataError: A sample is damaged, or there is no label.
    """
    store = ShardStore(holder.folder, holder.manifest.split(STATISTICS_SPLIT).shards)
    label = Label(LabelRequest(holder.name, holder.name), holder.field)
    sources = {shard.source for shard in store.shards}
    labels = {s: labels_of_source(holder.manifest, [label], s)[0] for s in sources}
    values = []
    for number in range(len(store)):
        stored = labels[store.shard(number).source]
        member = stored.field.member
        if stored.absent:
            continue
        key, contents = store.read(number, [member])
        try:
            record = decode(member, contents[member]) if member in contents else {}
            assert isinstance(record, dict), "a scalar field is in a record"
            value = stored.scalar(record)
        except DataError as error:
            raise DataError(f"{store.where(number)}: sample {key}: {error}") from error
        if value is not None:
            values.append(value)
    if not values:
        raise DataError(
            f"{holder.folder.where('')}: field {holder.name}: no label in split "
            f"{STATISTICS_SPLIT}, the manifest says {holder.labelled(STATISTICS_SPLIT)}"
        )
    return values
