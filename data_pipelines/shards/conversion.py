"""The record in a manifest of how its shards were converted."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    PositiveInt,
    StringConstraints,
)

MAX_ARGUMENTS = 1000  # each of another type has an error for every type that is allowed


class _FailFast(FailFast):
    """As a part of a union, which needs its hash."""

    __hash__ = object.__hash__


Argument = str | int | float | bool | Annotated[tuple[str, ...], _FailFast()] | None


def _few(arguments: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    if isinstance(arguments, dict) and len(arguments) > MAX_ARGUMENTS:
        raise ValueError(f"{len(arguments)} arguments, allowed are at most {MAX_ARGUMENTS}")
    return arguments


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
    arguments: Annotated[dict[str, Argument], BeforeValidator(_few)]
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    skipped: dict[str, PositiveInt] = {}
    missing: dict[str, dict[str, PositiveInt]] = {}
