"""The record in a manifest of how its shards were converted."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, PositiveInt, StringConstraints

Argument = str | int | float | bool | tuple[str, ...] | None


class Conversion(BaseModel):
    """The source of converted shards, and what was left out.

    Attributes:
        source: Name of the converter.
        arguments: Arguments of the conversion.
        digest: Hex sha256 of the arguments and of the list of source samples.
        skipped: Number of source samples left out, by reason.
        missing: Number of labels left out, by field and reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    arguments: dict[str, Argument]
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    skipped: dict[str, PositiveInt] = {}
    missing: dict[str, dict[str, PositiveInt]] = {}
