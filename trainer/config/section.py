"""The base of all sections of a configuration: immutable, and unknown keys are errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    model_validator,
)

from trainer.config.allowed import Type

# Larger numbers are mistakes, and overflow the integers and timers that they are converted to.
MAX_COUNT = 10**12  # of steps, samples, bytes or anything else
MAX_SECONDS = 1e9  # 30 years

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0, le=MAX_COUNT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_COUNT)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Seconds = Annotated[float, Field(gt=0.0, le=MAX_SECONDS)]


def _check_finite(value: Any, path: str = "") -> Any:  # noqa: ANN401 - any YAML value
    """Return the options unchanged; refuse a number in them that is infinite or NaN."""
    parts: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, list | tuple):
        parts = enumerate(value)
    for key, part in parts:
        _check_finite(part, f"{path}.{key}" if path else str(key))
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f".{path}: found {value}; allowed: a finite number")
    return value


# What another part of the program checks further.
Options = Annotated[dict[str, Any], AfterValidator(_check_finite)]


class Section(BaseModel):
    """A part of the configuration; no number in it is infinite or NaN.

    The text below a key is its documentation: docs/configuration.md and editors show it. An empty
    section or mapping, which YAML reads as null, has the defaults of all its keys.

    Attributes:
        noun: What the sections of a union are called in messages; None outside of unions.
        discriminator: The key that chooses a section of a union.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    noun: ClassVar[str | None] = None
    discriminator: ClassVar[str] = "name"

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, values: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        if values is None:
            return {}
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields
        return {
            key: _prepared(value, Type.of_field(fields[key])) if key in fields else value
            for key, value in values.items()
        }


class _NoNumber:
    """True or false where a number is allowed; no number type accepts it, as 1 or 0."""

    def __init__(self, value: bool) -> None:
        self._value = value

    def __str__(self) -> str:
        return str(self._value).lower()


def _prepared(value: Any, of: Type) -> Any:  # noqa: ANN401 - any YAML value
    """Return an empty mapping for null where only a mapping is allowed, else the value."""
    if value is None and not of.nullable and of.takes(dict):
        return {}
    return _refuse_true_as_number(value, of)


def _refuse_true_as_number(value: Any, of: Type) -> Any:  # noqa: ANN401 - any YAML value
    if isinstance(value, (list, tuple)):
        element = of.element(0)
        if element is None:
            return value
        return type(value)(_refuse_true_as_number(each, element) for each in value)
    if isinstance(value, Mapping):
        element = of.element("")
        if element is None:
            return value
        return {key: _refuse_true_as_number(each, element) for key, each in value.items()}
    is_number = not of.takes(bool) and (of.takes(int) or of.takes(float))
    return _NoNumber(value) if isinstance(value, bool) and is_number else value


def validate_choice(sections: Mapping[str, type[Section]], tree: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Return the section that a tree of values chooses by their discriminator.

    The union is built here and not with a class, because plug-ins register sections.

    Args:
        sections: Those that can be chosen, by the value that chooses them.
        tree: The values, with the discriminator.

    Raises:
        ValidationError: The choice is unknown, or a key or value is not allowed.
    """
    return _union(tuple(sections.items())).validate_python(tree)


@lru_cache(maxsize=8)
def _union(sections: tuple[tuple[str, type[Section]], ...]) -> TypeAdapter[Any]:
    key = sections[0][1].discriminator
    tagged = tuple(Annotated[section, Tag(name)] for name, section in sections)
    union: Any = Annotated[  # of a tuple
        Union[tagged],  # noqa: UP007
        Discriminator(lambda value: str(value[key])),
    ]
    return TypeAdapter(union)
