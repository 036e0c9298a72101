"""Looks at the labels of a run's first batches, before they have cost days."""
# Shapes: N tasks.

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator

from data_pipelines.doctor.checks import LEVELS, is_flattened, task_findings
from data_pipelines.doctor.statistics import DataStatistics
from data_pipelines.reading.collate import Batch
from model.tasks.spec import TaskSpec
from trainer.doctor.rules import rule_of
from trainer.errors import UserError

logger = logging.getLogger(__name__)

_SAMPLES = 64  # that a rank looks at
_MAX_STEPS = 16  # in which it does, however small its batches are
_ENOUGH = 8  # labels that are flat by no chance


class LabelGuard:
    """The quick form of the doctor; every rank must call it in every step.

    Args:
        tasks: The N tasks.
        allow_flat: Only warn of labels that carry no information.
    """

    def __init__(
        self, tasks: tuple[TaskSpec, ...], accelerator: Accelerator, *, allow_flat: bool
    ) -> None:
        self._tasks = tasks
        self._accelerator = accelerator
        self._allow_flat = allow_flat
        self._statistics: DataStatistics | None = DataStatistics([rule_of(t) for t in tasks])
        self._steps = self._samples = 0

    def watch(self, micro_batches: list[Batch]) -> None:
        """Take in a step's batches, and judge once enough have come.

        Raises:
            UserError: On every rank, naming the tasks whose labels are flattened.
        """
        if self._statistics is None:
            return
        for batch in micro_batches:
            self._statistics.update(batch.to("cpu", non_blocking=False))
        # Counted by size, not by what was seen, so that all ranks judge in the same step
        self._samples += sum(len(batch.images) for batch in micro_batches)
        self._steps += 1
        if self._samples >= _SAMPLES or self._steps == _MAX_STEPS:
            statistics, self._statistics = self._statistics, None
            self._judge(statistics)

    def _judge(self, statistics: DataStatistics) -> None:
        own = [
            (float(is_flattened(seen)) * seen.present, float(seen.present))
            for seen in statistics.labels.values()
        ]
        sums = torch.tensor(own, device=self._accelerator.device)  # [N,2]
        counts = self._accelerator.reduce(sums, reduction="sum").tolist()
        flattened = [
            task.name
            for task, (flat, present) in zip(self._tasks, counts, strict=True)
            if flat == present >= _ENOUGH
        ]
        if flattened and not self._allow_flat:
            raise UserError(
                f"labels of {', '.join(flattened)} hold one value throughout the first "
                f"{self._steps} step(s), or one in each picture: they carry no information. Look "
                "at them with `dmtg doctor`; data.allow_flat_labels=true trains all the same"
            )
        if not self._accelerator.is_main_process:
            return
        for name, seen in statistics.labels.items():
            for finding in task_findings(seen, all_seen=False):
                if LEVELS.index(finding.level) >= LEVELS.index("warning"):
                    logger.warning("labels of %s in the first steps: %s", name, finding.message)
