"""Check the labels of a run's first batches, before days are trained on labels without content."""
# Shapes: N tasks.

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import torch
from accelerate import Accelerator

from data_pipelines.doctor.checks import LEVELS, is_empty, is_flattened, task_findings
from data_pipelines.doctor.statistics import DataStatistics
from data_pipelines.reading.collate import Batch
from model.tasks.spec import TaskSpec
from trainer.doctor.rules import rule_of
from trainer.errors import UserError

logger = logging.getLogger(__name__)

_SAMPLES = 64  # of each rank that are checked
_MAX_STEPS = 16  # after which the check ends, however small the batches are
_SHOWN = 10  # tasks that are warned of
_ENOUGH = 8  # labels without content that are no coincidence


class LabelGuard:
    """The short form of `dmtg doctor`.

    Args:
        tasks: The N tasks.
        allow_flat: Only warn about labels that carry no information.
    """

    def __init__(
        self, tasks: tuple[TaskSpec, ...], accelerator: Accelerator, *, allow_flat: bool
    ) -> None:
        self._tasks = tasks
        self._accelerator = accelerator
        self._allow_flat = allow_flat
        self._statistics: DataStatistics | None = DataStatistics([rule_of(t) for t in tasks])
        self._steps = self._samples = 0

    def record(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, still on the host, and record the labels of the first ones."""
        for batch in batches:
            if self._statistics is not None:
                self._statistics.update(batch.to("cpu", non_blocking=False))
            yield batch

    def check(self, micro_batches: list[Batch]) -> None:
        """Check the labels once there are enough; every rank must call it in every step.

        Args:
            micro_batches: Batches of the step, which `record` has yielded.

        Raises:
            UserError: On every rank, naming the tasks whose labels carry no information.
        """
        if self._statistics is None:
            return
        # Counted by the size of the batches, not by their labels, so that all ranks check in the
        # same step.
        self._samples += sum(len(batch.images) for batch in micro_batches)
        self._steps += 1
        if self._samples >= _SAMPLES or self._steps == _MAX_STEPS:
            statistics, self._statistics = self._statistics, None
            self._check(statistics)

    def _check(self, statistics: DataStatistics) -> None:
        local_counts = [
            (
                float(is_empty(label)) * label.present,
                float(is_empty(label) or is_flattened(label)) * label.present,
                float(label.present),
            )
            for label in statistics.labels.values()
        ]
        sums = torch.tensor(local_counts, device=self._accelerator.device)  # [N,3]
        counts = self._accelerator.reduce(sums, reduction="sum").tolist()
        empty: list[str] = []
        flattened: list[str] = []
        for task, (without_pixels, without_content, present) in zip(
            self._tasks, counts, strict=True
        ):
            if without_content == present >= _ENOUGH:
                (empty if without_pixels == present else flattened).append(task.name)
        if not self._allow_flat:
            self._stop(empty, flattened)
        if not self._accelerator.is_main_process:
            return
        found = {
            name: "; ".join(
                finding.message
                for finding in task_findings(label, all_seen=False)
                if LEVELS.index(finding.level) >= LEVELS.index("warning")
            )
            for name, label in statistics.labels.items()
        }
        warnings = [f"labels of {name} in the first steps: {text}" for name, text in found.items()
                    if text]  # fmt: skip
        for warning in warnings[:_SHOWN]:
            logger.warning("%s", warning)
        if len(warnings) > _SHOWN:
            logger.warning(
                "labels of %d more tasks: dmtg doctor lists what it finds", len(warnings) - _SHOWN
            )

    def _stop(self, empty: list[str], flattened: list[str]) -> None:
        """Raise the error of the tasks whose labels have no valid pixel, or one value."""
        first_steps = f"throughout the first {self._steps} step(s)"
        errors = []
        if empty:
            errors.append(
                f"labels of {', '.join(empty)} have no valid pixel {first_steps}: every pixel is "
                "invalid or ignored, so they carry no information"
            )
        if flattened:
            errors.append(
                f"labels of {', '.join(flattened)} hold one value {first_steps}, or one in each "
                "picture: they carry no information"
            )
        if errors:
            raise UserError(
                f"{'; '.join(errors)}. Check them with `dmtg doctor`; "
                "data.allow_flat_labels=true trains on them nevertheless"
            )
