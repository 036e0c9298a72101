"""Count the damaged samples that were replaced, and stop a run that has too many."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import torch
from accelerate import Accelerator

from data_pipelines.errors import DataError
from data_pipelines.reading.collate import Batch
from trainer.config.data import DataSection

logger = logging.getLogger(__name__)

MAX_WARNINGS = 20  # of a process; further damaged samples are only counted
SURE_SAMPLES = 10_000  # with fewer, the fraction may exceed the allowed one by chance


class DamagedSampleCounter:
    """The same count on every rank; without `data.on_error=replace` it does nothing.

    Args:
        accelerator: Sums over the ranks.
        section: The `data` section.
        split_samples: Samples of the split; None for a stream.
        total: Samples of this run that were replaced before.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        section: DataSection,
        split_samples: int | None,
        total: int = 0,
    ) -> None:
        self.total = total
        self._active = section.on_error == "replace"
        self._allowed = section.max_bad_fraction
        self._least = min(SURE_SAMPLES, split_samples or SURE_SAMPLES)
        self._accelerator = accelerator
        self._logged = self._local_count = 0  # of this process: in total, and since `check`
        self._last = "on another rank"

    def count(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and count the damaged samples that were replaced in each."""
        for batch in batches:
            for message in batch.damage:
                self._add(message)
            yield batch

    def check(self, samples: int) -> None:
        """Sum over the ranks, all of which must call it.

        Args:
            samples: Samples read so far over all ranks.

        Raises:
            DataError: On every rank: more than the allowed fraction was damaged.
        """
        if not self._active:
            return
        local_count = torch.tensor(float(self._local_count), device=self._accelerator.device)
        self.total += round(float(self._accelerator.reduce(local_count, reduction="sum")))
        self._local_count = 0
        if self.total > self._allowed * max(samples, self._least):
            raise DataError(
                f"data.max_bad_fraction: {self.total} of {samples} samples were damaged, allowed "
                f"is a fraction of {self._allowed}; the last: {self._last}"
            )

    def record(self) -> dict[str, int]:
        """Return the entries of a record of `metrics.jsonl`."""
        return {"replaced": self.total} if self._active else {}

    def _add(self, message: str) -> None:
        self._local_count += 1
        self._logged += 1
        self._last = message
        if self._logged <= MAX_WARNINGS:
            logger.warning("replaced a damaged sample: %s", message)
        if self._logged == MAX_WARNINGS:
            logger.warning("further damaged samples are only counted")
