"""The manifest's record of where converted shards come from."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, PositiveInt, StringConstraints

Argument = str | int | float | bool | tuple[str, ...] | None


class Conversion(BaseModel):
    """What was converted, and what of it the shards lack.

    Attributes:
        source: Name of the converter.
        arguments: What it was asked for.
        digest: Hex sha256 of the arguments and of the list of source samples.
        skipped: Source samples that were left out, by reason.
        missing: Labels that could not be taken over, by field and reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    arguments: dict[str, Argument]
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    skipped: dict[str, PositiveInt] = {}
    missing: dict[str, dict[str, PositiveInt]] = {}
