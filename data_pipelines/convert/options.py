"""The options that all converters have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipelines.shards.conversion import Argument


@dataclass(frozen=True)
class ConversionOptions:
    """The arguments that do not depend on the source.

    Attributes:
        tasks: Labels to take besides the image; None takes all that the converter supports.
        image_size: Pixels of the shorter side of the stored pictures; None keeps their size.
        limit: Maximum number of samples of each split, drawn at random; of a streamed dataset,
            from its first rows.
        seed: Seed of the order of the samples.
        portable: Store PNG instead of JPEG and planes.
        samples_per_shard: Number of samples of a shard.
        workers: Number of converting processes; 1 converts in this process.
        progress: Whether to show a progress bar.
    """

    tasks: Sequence[str] | None = None
    image_size: int | None = None
    limit: int | None = None
    seed: int = 0
    portable: bool = False
    samples_per_shard: int = 1000
    workers: int = 1
    progress: bool = True

    def arguments(self, tasks: Sequence[str]) -> dict[str, Argument]:
        """Return the arguments that determine the bytes of a sample.

        The names are part of a conversion's digest: with other names, a conversion that was begun
        or finished by an earlier version would not be recognised.

        Args:
            tasks: The labels taken.
        """
        return {
            "tasks": tuple(tasks),
            "size": self.image_size,
            "limit": self.limit,
            "seed": self.seed,
            "portable": self.portable,
        }
