"""The base of all sections of a configuration: immutable, and unknown keys are errors."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    """A part of the configuration.

    Attributes:
        noun: What the sections of a union are called in messages; None outside of unions.
        discriminator: The key that chooses a section of a union.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    noun: ClassVar[str | None] = None
    discriminator: ClassVar[str] = "name"
