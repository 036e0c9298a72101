"""What every conversion can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipelines.shards.conversion import Argument


@dataclass(frozen=True)
class ConversionOptions:
    """The arguments that do not depend on the source.

    Attributes:
        tasks: Labels to take besides the image; None takes all that the converter knows.
        size: Pixels of the shorter side of the stored pictures; None keeps them.
        limit: Samples of each split at most, drawn at random (from the start of a stream).
        seed: Of the order of the samples.
        portable: Store PNG instead of JPEG and planes.
        samples_per_shard: Samples of a shard.
        workers: Processes that convert; 1 converts in this one.
        progress: Whether to show a progress bar.
    """

    tasks: Sequence[str] | None = None
    size: int | None = None
    limit: int | None = None
    seed: int = 0
    portable: bool = False
    samples_per_shard: int = 1000
    workers: int = 1
    progress: bool = True

    def arguments(self, tasks: Sequence[str]) -> dict[str, Argument]:
        """What decides the bytes of a sample, for a plan.

        Args:
            tasks: The labels taken.
        """
        return {
            "tasks": tuple(tasks),
            "size": self.size,
            "limit": self.limit,
            "seed": self.seed,
            "portable": self.portable,
        }
