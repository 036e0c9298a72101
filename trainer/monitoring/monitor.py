"""Measure a run: times of all ranks, progress, `timing.jsonl` and `status.json`."""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from data_pipelines.reading.collate import Batch
from model.heads.layout import HeadSelection
from model.network import MultiTaskNetwork
from trainer.config.config import Config
from trainer.engines.device import chosen_precision
from trainer.monitoring.status import StatusFile
from trainer.monitoring.throughput import StepFlops, peak_tflops
from trainer.monitoring.timing import StepTimer, gather_times, rounded, summarize
from trainer.monitoring.timing_file import TimingFile

logger = logging.getLogger(__name__)

_STATUS_SECONDS = 1.0  # between two writes of a status that differs only in numbers
_INTERVALS = 20  # between two writes, from which the time left is estimated


@dataclass(frozen=True)
class Pace:
    """The speed of the last steps over all ranks.

    Attributes:
        record: Their record in `timing.jsonl`. The time of a step excludes evaluations, checkpoints
            and other pauses.
    """

    record: dict[str, Any]

    @property
    def samples_per_second(self) -> float:
        """Samples of all ranks per second."""
        return self.record["samples_per_second"]

    def scalars(self) -> dict[str, float]:
        """Return the values for the trackers."""
        record = self.record
        values = {
            "speed/samples_per_second": record["samples_per_second"],
            "speed/samples_per_second_per_process": record["samples_per_second_per_process"],
            "speed/step_seconds": record["step_seconds"],
            "speed/data_seconds": record["data_seconds"]["max"],
            "speed/share_of_peak": record["share_of_peak"],
            "memory/process_gib": record["process_gib"]["max"],
            "memory/device_gib": record["device_gib"]["max"],
        }
        if record["slowest"] is not None:
            values["speed/slowest_rank"] = record["slowest"]["rank"]
        return {name: value for name, value in values.items() if value is not None}


class Monitor:
    """The times and the status of a run; every rank has one and makes the same calls.

    Args:
        config: Configuration of the run.
        accelerator: Accelerator of the run.
        steps_per_epoch: None if the data has no end.

    Attributes:
        timer: Timer that the loop calls where a step begins and ends.
    """

    def __init__(
        self, config: Config, accelerator: Accelerator, steps_per_epoch: int | None
    ) -> None:
        self.timer = StepTimer(accelerator.device)
        self._accelerator = accelerator
        self._global_batch = config.data.global_batch
        self._steps_per_epoch = steps_per_epoch
        self._hosts: list[str] = gather_object([socket.gethostname()])
        self._flops = StepFlops()
        self._peak = config.log.peak_tflops or peak_tflops(
            # Accelerate does not know of DeepSpeed's autocast, nor of TF32.
            accelerator.device,
            chosen_precision(config),
        )
        self._status = StatusFile(config.run.out)
        self._timing = TimingFile(config.run.out) if accelerator.is_main_process else None
        self._writes: deque[tuple[float, int]] = deque(maxlen=_INTERVALS)
        self._written = 0.0

    def begin(self, step: int, num_steps: int) -> None:
        """Record a start of the run after `step` steps."""
        if self._timing is not None:
            self._timing.append(step, "start", {"hosts": self._hosts})
            self._status.write("starting", step=step, num_steps=num_steps, **self.progress(step))

    def note_step(self, step: int, num_steps: int) -> None:
        """Write the step that is saved, with which this start of the run ends."""
        if self._timing is not None:
            reached = {"step": step, "num_steps": num_steps, "progress": step / num_steps}
            self._status.write("running", **reached, **self.progress(step))

    def note_groups(self, grouping: dict[str, Any]) -> None:
        """Write the groups that the run ends with: the last step may have decided them."""
        if self._timing is not None:
            self._status.write("running", grouping=grouping)

    def progress(self, step: int) -> dict[str, int | float]:
        """Return the samples and epochs of `step` steps, the same at every start of the run."""
        progress: dict[str, int | float] = {"samples": step * self._global_batch}
        if self._steps_per_epoch is not None:
            progress["epoch"] = round(step / self._steps_per_epoch, 4)
        return progress

    def report(
        self,
        step: int,
        num_steps: int,
        network: tuple[MultiTaskNetwork, HeadSelection, Sequence[Batch]],
        shown: dict[str, Any],
    ) -> Pace | None:
        """Measure the steps since the last report; every rank must call it, right after a step.

        Args:
            step: Steps done.
            num_steps: Steps of the whole run.
            network: The module, the selection and the micro-batches of the step.
            shown: Other values for `status.json`.

        Returns:
            The pace; None on all but the main process.
        """
        local_times = self.timer.take()
        # On every rank, or the others would wait for the main process within their next step.
        flops = self._flops.of(*network)
        times = gather_times(self._accelerator, local_times)
        if self._timing is None:
            return None
        record = self.progress(step) | summarize(times, self._hosts)
        seconds = record["step_seconds"]
        rate = self._global_batch / seconds
        record |= {
            "samples_per_second": rounded(rate),
            "samples_per_second_per_process": rounded(rate / len(self._hosts)),
            **self._arithmetic(flops, seconds),
        }
        record["hours"] = self._timing.append(step, "steps", record)
        if time.monotonic() - self._written >= _STATUS_SECONDS or step == num_steps:
            self._update(step, num_steps, record | shown)
        return Pace(record)

    def _arithmetic(self, flops: int | None, seconds: float) -> dict[str, float | None]:
        """Return the speed of a process that does `flops` operations in `seconds` seconds."""
        if flops is None:
            return {"tflops_per_process": None, "share_of_peak": None}
        speed = flops / seconds / 1e12
        fraction = None if self._peak is None else rounded(speed / self._peak)
        return {"tflops_per_process": rounded(speed), "share_of_peak": fraction}

    @contextmanager
    def evaluating(self, step: int) -> Iterator[None]:
        """Set the status to `evaluating` within the block, after `step` steps."""
        if self._timing is not None:
            self._status.write("evaluating", step=step)
        yield
        if self._timing is not None:
            self._status.write("running")

    def _update(self, step: int, num_steps: int, values: dict[str, Any]) -> None:
        self._written = time.monotonic()
        self._writes.append((self._written, step))
        (since, first), count = self._writes[0], len(self._writes) - 1
        seconds = self._written - since
        self._status.write(
            "running",
            step=step,
            num_steps=num_steps,
            progress=step / num_steps,
            eta_seconds=(num_steps - step) * seconds / (step - first) if count else None,
            interval_seconds=seconds / count if count else None,
            world_size=len(self._hosts),
            **values,
        )
