"""The description of one field of the samples in a manifest."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    StringConstraints,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic import Field as Bound

from data_pipelines.decode.bounds import RECORDS
from data_pipelines.decode.codecs import IMAGES
from dmtg.names import check_text

FieldKind = Literal[
    "image", "binary", "multiclass", "regression", "dense_regression", "dense_classification"
]
Dtype = Literal["uint8", "uint16", "float32"]
MAX_CHANNELS = 255  # of a dense label: more than any encoding holds
MAX_CLASSES = 2**19  # names of the classes of a field
MAX_VALUES = 1000  # entries of `values` of a field
SCALAR_KINDS = frozenset({"binary", "multiclass", "regression"})
CLASS_KINDS = frozenset({"multiclass", "dense_classification"})
REGRESSION_KINDS = frozenset({"regression", "dense_regression"})

Suffix = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$")
]
Values = Annotated[dict[str, FiniteFloat | None], Bound(max_length=MAX_VALUES)]


class Frozen(BaseModel):
    """Base class: immutable, unknown entries are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Field(Frozen):
    """One entry of a sample: the image or a label.

    Attributes:
        member: Name of the tar member after the sample's key, such as `rgb.png`.
        kind: The image, or the task kind of the label.
        key: Entry of a json or cls member; required for scalar kinds, absent for the others.
        channels: Channels stored in a dense field.
        classes: Names of the classes of `multiclass` and `dense_classification`.
        mean: Mean of a regression over the train split, in stored units.
        std: Standard deviation of a regression over the train split, in stored units.
        dtype: Type of a picture's values; None if any is allowed.
        on_flip: Effect of mirroring left and right: the value stays (`keep`), its first channel
            changes its sign (`negate_x`), or the label becomes wrong (`forbid`).
        values: What a stored value of a scalar field stands for, by its text: a class id, 0 or 1,
            a number, or None for no label; the text of null is empty. Other values stand for
            themselves.
    """

    member: Suffix
    kind: FieldKind
    key: str | None = None
    channels: Annotated[int, Bound(ge=1, le=MAX_CHANNELS)] = 1
    classes: Annotated[tuple[str, ...], Bound(max_length=MAX_CLASSES), FailFast()] = ()
    mean: FiniteFloat | None = None
    std: FiniteFloat | None = None
    dtype: Dtype | None = None
    on_flip: Literal["keep", "negate_x", "forbid"] = "keep"
    values: Values = {}

    @property
    def is_scalar(self) -> bool:
        """Whether a sample has one value rather than a picture of values."""
        return self.kind in SCALAR_KINDS

    @property
    def num_classes(self) -> int:
        """Number of class ids: 2 of a binary field, 0 of a regression or an image."""
        return 2 if self.kind == "binary" else len(self.classes)

    @model_serializer(mode="wrap")
    def _without_empty_values(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave an empty `values` out: a field of an earlier version keeps its digest."""
        content: dict[str, Any] = serialize(self)
        if not self.values:
            content.pop("values", None)
        return content

    @field_validator("classes")
    @classmethod
    def _printable(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_text(f"class {index}", name) for index, name in enumerate(classes))

    @model_validator(mode="after")
    def _consistent(self) -> Field:
        if errors := self.errors():
            raise ValueError("; ".join(errors))
        return self

    def errors(self) -> list[str]:
        """Return what does not fit together in the description, such as a kind and its member."""
        in_record = self.member.rpartition(".")[2] in RECORDS
        errors = []
        if self.is_scalar and not (in_record and self.key):
            errors.append(
                f"member {self.member!r} and key {self.key!r}: kind {self.kind} needs a json "
                "or cls member and the key inside it"
            )
        if not self.is_scalar and (in_record or self.key is not None):
            errors.append(
                f"member {self.member!r} and key {self.key!r}: kind {self.kind} needs a picture "
                "member and no key"
            )
        if self.kind == "image" and self.member.rpartition(".")[2] not in IMAGES:
            errors.append(
                f"member {self.member!r}: kind image needs a member that ends with one of "
                f"{', '.join(sorted(IMAGES))}"
            )
        if self.kind in CLASS_KINDS and len(self.classes) < 2:
            errors.append(f"classes {self.classes!r}: kind {self.kind} needs at least two names")
        if self.kind not in CLASS_KINDS and self.classes:
            errors.append(f"classes {self.classes!r}: kind {self.kind} has none")
        if (self.mean is None) != (self.std is None):
            errors.append(f"mean {self.mean} and std {self.std}: give both or neither")
        if self.mean is not None and self.kind not in REGRESSION_KINDS:
            errors.append(f"mean {self.mean}: kind {self.kind} has none")
        if self.std is not None and self.std <= 0:
            errors.append(f"std {self.std}: must be greater than 0")
        if self.dtype is not None and self.is_scalar:
            errors.append(f"dtype {self.dtype!r}: kind {self.kind} has none")
        if self.on_flip == "negate_x" and self.kind != "dense_regression":
            errors.append(f"on_flip 'negate_x': kind {self.kind} allows 'keep' or 'forbid'")
        return errors + self._wrong_values()

    def _wrong_values(self) -> list[str]:
        if self.values and not self.is_scalar:
            return [f"values: kind {self.kind} has none"]
        if self.kind == "regression":
            return []
        return [
            f"values.{text} {value:g}: must be an integer from 0 to {self.num_classes - 1}, or null"
            for text, value in self.values.items()
            if value is not None and value not in range(self.num_classes)
        ]
