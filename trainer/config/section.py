"""The base of all sections of a configuration: immutable, and unknown keys are errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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
