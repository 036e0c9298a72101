"""The base of all sections of a configuration: immutable, and unknown keys are errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter

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
        raise ValueError(f"{path}: found {value}; allowed are finite numbers")
    return value


# What another part of the program checks further.
Options = Annotated[dict[str, Any], AfterValidator(_check_finite)]


class Section(BaseModel):
    """A part of the configuration; no number in it is infinite or NaN.

    Attributes:
        noun: What the sections of a union are called in messages; None outside of unions.
        discriminator: The key that chooses a section of a union.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    noun: ClassVar[str | None] = None
    discriminator: ClassVar[str] = "name"


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
