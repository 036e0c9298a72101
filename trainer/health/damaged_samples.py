"""Counts the damaged samples that were replaced, and stops a run that has too many."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import torch
from accelerate import Accelerator

from data_pipelines.errors import DataError
from data_pipelines.reading.collate import Batch
from trainer.config.data import DataSection

logger = logging.getLogger(__name__)

MAX_WARNINGS = 20  # of a process; further faults are only counted
SURE_SAMPLES = 10_000  # below so many, chance alone may exceed the allowed share


class FaultCounter:
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
        self._seen = self._own = 0
        self._last = "on another rank"

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, whose faults are noted as they pass."""
        for batch in batches:
            for damage in batch.damage:
                self._note(damage)
            yield batch

    def check(self, samples: int) -> None:
        """Sum over the ranks, all of which must call it.

        Args:
            samples: Samples read so far over all ranks.

        Raises:
            DataError: On every rank: more than the allowed share was bad.
        """
        if not self._active:
            return
        own = torch.tensor(float(self._own), device=self._accelerator.device)
        self.total += round(float(self._accelerator.reduce(own, reduction="sum")))
        self._own = 0
        if self.total > self._allowed * max(samples, self._least):
            raise DataError(
                f"data.max_bad_fraction: {self.total} of {samples} samples were damaged, allowed "
                f"is a share of {self._allowed}; the last: {self._last}"
            )

    def record(self) -> dict[str, int]:
        """What goes into a record of `metrics.jsonl`."""
        return {"replaced": self.total} if self._active else {}

    def _note(self, fault: str) -> None:
        self._own += 1
        self._seen += 1
        self._last = fault
        if self._seen <= MAX_WARNINGS:
            logger.warning("replaced a damaged sample: %s", fault)
        if self._seen == MAX_WARNINGS:
            logger.warning("further damaged samples are only counted")
