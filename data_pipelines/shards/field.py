"""What a manifest says about one field of the samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    FiniteFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from data_pipelines.decode.codecs import RECORDS

FieldKind = Literal[
    "image", "binary", "multiclass", "regression", "dense_regression", "dense_classification"
]
Dtype = Literal["uint8", "uint16", "float32"]
SCALAR_KINDS = frozenset({"binary", "multiclass", "regression"})
CLASS_KINDS = frozenset({"multiclass", "dense_classification"})
REGRESSION_KINDS = frozenset({"regression", "dense_regression"})

Suffix = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$")
]


class Frozen(BaseModel):
    """Immutable, and without entries that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Field(Frozen):
    """One thing stored for a sample: the image or a label.

    Attributes:
        member: Name of the tar member after the sample's key, such as `rgb.png`.
        kind: What the values are.
        key: Entry of a json or cls member; required for scalar kinds, absent for the others.
        channels: Channels stored in a dense field.
        classes: Names of the classes of `multiclass` and `dense_classification`.
        mean: Mean of a regression over the train split, in stored units.
        std: Standard deviation of a regression over the train split, in stored units.
        dtype: Type of a picture's values; None leaves it open.
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
    dtype: Dtype | None = None
    on_flip: Literal["keep", "negate_x", "forbid"] = "keep"

    @property
    def is_scalar(self) -> bool:
        """Whether a sample has one value rather than a picture of values."""
        return self.kind in SCALAR_KINDS

    @model_validator(mode="after")
    def _consistent(self) -> Field:
        in_record = self.member.rpartition(".")[2] in RECORDS
        faults = []
        if self.is_scalar and not (in_record and self.key):
            faults.append(
                f"member {self.member!r} and key {self.key!r}: kind {self.kind} needs a json "
                "or cls member and the key inside it"
            )
        if not self.is_scalar and (in_record or self.key is not None):
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
        if self.dtype is not None and self.is_scalar:
            faults.append(f"dtype {self.dtype!r}: kind {self.kind} has none")
        if self.on_flip == "negate_x" and self.kind != "dense_regression":
            faults.append(f"on_flip 'negate_x': kind {self.kind} allows 'keep' or 'forbid'")
        if faults:
            raise ValueError("; ".join(faults))
        return self
