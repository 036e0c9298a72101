"""The manifest of a folder of shards: which fields a sample has and which shards make a split."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from data_pipelines.errors import DataError

MANIFEST_NAME = "manifest.json"
MAX_FAULTS_SHOWN = 10

FieldKind = Literal[
    "image", "binary", "multiclass", "regression", "dense_regression", "dense_classification"
]
SCALAR_KINDS = frozenset({"binary", "multiclass", "regression"})
CLASS_KINDS = frozenset({"multiclass", "dense_classification"})
REGRESSION_KINDS = frozenset({"regression", "dense_regression"})

ShardName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Suffix = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+$")
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Field(_Frozen):
    """One thing stored for a sample: the image or a label.

    Attributes:
        member: Name of the tar member after the sample's key, such as `rgb.png`.
        kind: What the values are.
        key: Entry of a `.json` member; required for scalar kinds, absent for the others.
        channels: Channels stored in a dense field.
        classes: Names of the classes of `multiclass` and `dense_classification`.
        mean: Mean of a regression over the train split, in stored units.
        std: Standard deviation of a regression over the train split, in stored units.
        on_flip: What mirroring left and right does to the value: nothing, the sign of its
            first channel changes, or the label would become wrong.
    """

    member: Suffix
    kind: FieldKind
    key: str | None = None
    channels: PositiveInt = 1
    classes: tuple[str, ...] = ()
    mean: FiniteFloat | None = None
    std: FiniteFloat | None = None
    on_flip: Literal["keep", "negate_x", "forbid"] = "keep"

    @property
    def is_scalar(self) -> bool:
        """Whether a sample has one value rather than a picture of values."""
        return self.kind in SCALAR_KINDS

    @model_validator(mode="after")
    def _consistent(self) -> Field:
        in_json = self.member.endswith(".json")
        faults = []
        if self.is_scalar and not (in_json and self.key):
            faults.append(
                f"member {self.member!r} and key {self.key!r}: kind {self.kind} needs a .json "
                "member and the key inside it"
            )
        if not self.is_scalar and (in_json or self.key is not None):
            faults.append(
                f"member {self.member!r} and key {self.key!r}: kind {self.kind} needs a picture "
                "member and no key"
            )
        if self.kind in CLASS_KINDS and len(self.classes) < 2:
            faults.append(f"classes {self.classes!r}: kind {self.kind} needs at least two names")
        if self.kind not in CLASS_KINDS and self.classes:
            faults.append(f"classes {self.classes!r}: kind {self.kind} has none")
        if (self.mean is None) != (self.std is None):
            faults.append(f"mean {self.mean} and std {self.std}: give both or neither")
        if self.mean is not None and self.kind not in REGRESSION_KINDS:
            faults.append(f"mean {self.mean}: kind {self.kind} has none")
        if self.std is not None and self.std <= 0:
            faults.append(f"std {self.std}: must be greater than 0")
        if self.on_flip == "negate_x" and self.kind != "dense_regression":
            faults.append(f"on_flip 'negate_x': kind {self.kind} allows 'keep' or 'forbid'")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class Shard(_Frozen):
    """One tar file: its name in the folder, samples, size in bytes and content hash."""

    name: ShardName
    samples: PositiveInt
    bytes: PositiveInt
    sha256: Sha256


class Split(_Frozen):
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


class Manifest(_Frozen):
    """Everything about a folder of shards that must be known before one is opened."""

    format: Literal["dmtg-shards"] = "dmtg-shards"
    version: Literal[1] = 1
    dataset: str
    image: str = "rgb"
    fields: dict[str, Field]
    splits: dict[str, Split]

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
    def load(cls, root: Path) -> Manifest:
        """Reads `root/manifest.json`.

        Raises:
            DataError: The file is absent or not a manifest; all its faults are in one message.
        """
        path = root / MANIFEST_NAME
        try:
            text = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); a folder of shards has a "
                f"{MANIFEST_NAME}"
            ) from error
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise DataError(_describe(path, error)) from error

    def save(self, root: Path) -> None:
        """Writes `root/manifest.json`; a reader sees the old file or the whole new one."""
        path = root / MANIFEST_NAME
        with open(path.with_name(f"{MANIFEST_NAME}.partial"), "wb") as file:
            file.write(self.model_dump_json(indent=1).encode() + b"\n")
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
        """Hex sha256 of the content, the same for equal manifests however they are written."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
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


def check_shards(root: Path, split: Split) -> None:
    """Compares the shards' sizes on disk with the manifest; opens none.

    Raises:
        DataError: Shards are missing or have another size.
    """
    faults = []
    for shard in split.shards:
        path = root / shard.name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            faults.append(f"{path}: missing shard")
            continue
        if size < shard.bytes:
            faults.append(f"{path}: truncated shard: {size} bytes, manifest says {shard.bytes}")
        elif size > shard.bytes:
            faults.append(f"{path}: wrong shard: {size} bytes, manifest says {shard.bytes}")
    if faults:
        raise DataError(_listed(faults))


def _listed(faults: list[str]) -> str:
    more = len(faults) - MAX_FAULTS_SHOWN
    return "\n".join(faults[:MAX_FAULTS_SHOWN] + ([f"and {more} more"] if more > 0 else []))


def _describe(path: Path, error: ValidationError) -> str:
    faults = []
    for fault in error.errors(include_url=False):
        place = ".".join(str(part) for part in fault["loc"]) or "manifest"
        message = fault["msg"].removeprefix("Value error, ")
        # A cross-field check and a missing entry have the whole object as input: not a useful value
        if fault["type"] not in {"value_error", "missing", "json_invalid"}:
            message = f"{fault['input']!r:.80}: {message}"
        faults.append(f"{path}: {place}: {message}")
    return _listed(faults)
