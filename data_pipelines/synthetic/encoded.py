"""A sample on its way to a shard."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncodedSample:
    """Bytes by member, and the scalar labels that one of the members holds as JSON."""

    key: str
    members: dict[str, bytes]
    scalars: dict[str, int | float]
