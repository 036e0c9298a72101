"""The shards that a conversion writes, fixed before it begins so that a rerun can continue it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.shards.conversion import Argument
from data_pipelines.shards.writer import shard_name
from dmtg.secrets import without_secrets_in


@dataclass(frozen=True)
class ShardJob:
    """One shard to write: its file name, its split and references to its source samples."""

    name: str
    split: str
    refs: Sequence[str]


@dataclass(frozen=True)
class ConversionJobs:
    """The source samples of every shard, in order.

    Attributes:
        source: Name of the converter.
        arguments: Everything that determines the bytes besides the source samples; credentials
            are removed from URLs.
        splits: References to source samples in their final order; only the converter reads them.
        samples_per_shard: Number of references in a shard.
        skipped: Number of samples left out before the conversion, by reason.
        missing: Number of labels left out before the conversion, by field and reason.
        inherited_digest: Digest of the first conversion, where the source samples are its result.
    """

    source: str
    arguments: Mapping[str, Argument]
    splits: Mapping[str, Sequence[str]]
    samples_per_shard: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    inherited_digest: str | None = None

    def __post_init__(self) -> None:
        for split in self.splits:
            shard_name(split, 0)  # raises DataError before anything is written
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard: {self.samples_per_shard} must be at least 1")
        # They are written into the manifest. A rerun may have other credentials.
        object.__setattr__(self, "arguments", without_secrets_in(self.arguments))
        if not any(self.splits.values()):
            left_out = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
            raise DataError(f"{self.source}: no samples found ({left_out or 'none left out'})")

    def digest(self) -> str:
        """Return the hex sha256 of everything that determines the bytes.

        It is `inherited_digest` if there is one, since that conversion determines them.
        """
        if self.inherited_digest is not None:
            return self.inherited_digest
        head = [self.source, dict(self.arguments), self.samples_per_shard]
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for name, refs in self.splits.items():
            digest.update(f"\n{name} {len(refs)}\n".encode())
            digest.update("\n".join(refs).encode())
        return digest.hexdigest()

    def shard_jobs(self) -> Iterator[ShardJob]:
        """Yield the shards, split by split."""
        for split, refs in self.splits.items():
            for number, start in enumerate(range(0, len(refs), self.samples_per_shard)):
                part = refs[start : start + self.samples_per_shard]
                yield ShardJob(shard_name(split, number), split, part)


def shuffled(
    splits: Mapping[str, Iterable[str]], *, seed: int, limit: int | None
) -> dict[str, list[str]]:
    """Return references in a random order that depends only on the seed.

    Empty splits are left out.

    Args:
        splits: References by split.
        seed: Seed of the order.
        limit: Maximum number of references of each split; None keeps all.
    """
    result = {}
    for number, (name, refs) in enumerate(splits.items()):
        ordered = sorted(refs)
        chosen = np.random.default_rng([seed, number]).permutation(len(ordered))[:limit]
        if ordered:
            result[name] = [ordered[index] for index in chosen]
    return result
