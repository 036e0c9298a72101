"""What a conversion will write, fixed before it starts so that a rerun can continue it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.shards.conversion import Argument
from data_pipelines.shards.writer import shard_name


@dataclass(frozen=True)
class ShardJob:
    """One shard to write: its file name, its split and the source samples it takes."""

    name: str
    split: str
    refs: Sequence[str]


@dataclass(frozen=True)
class Plan:
    """The source samples of every shard, in order.

    Attributes:
        source: Name of the converter.
        arguments: What decides the bytes besides the source samples.
        splits: References to source samples, meaningful to the converter, in their final order.
        samples_per_shard: References that a shard takes.
        skipped: Samples already left out, by reason.
        missing: Labels already left out, by field and reason.
        origin: Digest of the plan that made the source samples, where another one did.
    """

    source: str
    arguments: Mapping[str, Argument]
    splits: Mapping[str, Sequence[str]]
    samples_per_shard: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    origin: str | None = None

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard: {self.samples_per_shard} must be at least 1")
        if not any(self.splits.values()):
            left_out = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
            raise DataError(f"{self.source}: no samples found ({left_out or 'none left out'})")

    def digest(self) -> str:
        """Hex sha256 of everything that decides the bytes, or `origin`, which then does."""
        if self.origin is not None:
            return self.origin
        head = [self.source, dict(self.arguments), self.samples_per_shard]
        found = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for name, refs in self.splits.items():
            found.update(f"\n{name} {len(refs)}\n".encode())
            found.update("\n".join(refs).encode())
        return found.hexdigest()

    def jobs(self) -> Iterator[ShardJob]:
        """The shards, split by split."""
        for split, refs in self.splits.items():
            for number, start in enumerate(range(0, len(refs), self.samples_per_shard)):
                part = refs[start : start + self.samples_per_shard]
                yield ShardJob(shard_name(split, number), split, part)


def shuffled(
    splits: Mapping[str, Iterable[str]], *, seed: int, limit: int | None
) -> dict[str, list[str]]:
    """References in a random order that depends on the seed alone, at most `limit` of a split.

    Empty splits are left out.
    """
    result = {}
    for number, (name, refs) in enumerate(splits.items()):
        ordered = sorted(refs)
        chosen = np.random.default_rng([seed, number]).permutation(len(ordered))[:limit]
        if ordered:
            result[name] = [ordered[index] for index in chosen]
    return result
