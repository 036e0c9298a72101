"""What a run writes down while it trains: metrics.jsonl, TensorBoard and the progress bar."""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from trainer.errors import UserError
from trainer.run_folder import RunFolder
from trainer.sections import LogSection


def setup_logging(rank: int, world_size: int) -> None:
    """Log to standard error; with several processes every line names its rank."""
    who = f" [rank {rank}]" if world_size > 1 else ""
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format=f"%(asctime)s %(levelname)s{who} %(name)s: %(message)s",
        force=True,
    )
    # Both announce every collective and kernel build at INFO.
    for name in ("DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)


class RunLog:
    """Writes on the main process only; every other process calls it to no effect.

    `metrics.jsonl` holds what the run computed and no times, so that a resumed run writes the
    same bytes as one that was never interrupted.

    Args:
        folder: The run's folder.
        section: The `log` section.
        main: Whether this is the main process.
        start_step: Steps done before.
        num_steps: Steps of the whole run.
        metrics_bytes: Length of `metrics.jsonl` at `start_step`; what follows is cut off.

    Raises:
        UserError: The file is shorter than that.
    """

    def __init__(
        self,
        folder: RunFolder,
        section: LogSection,
        *,
        main: bool,
        start_step: int,
        num_steps: int,
        metrics_bytes: int,
    ) -> None:
        self._main = main
        self._writer: SummaryWriter | None = None
        self._since = (time.perf_counter(), start_step)
        if not main:
            return
        self._file = open(folder.metrics, "ab")  # noqa: SIM115 - open as long as the run
        size = self._file.seek(0, os.SEEK_END)
        if size < metrics_bytes:
            raise UserError(
                f"{folder.metrics}: has {size} bytes, the checkpoint was written at {metrics_bytes}"
            )
        self._file.truncate(metrics_bytes)
        self._file.seek(0, os.SEEK_END)
        if section.tensorboard:
            self._writer = SummaryWriter(str(folder.tensorboard), purge_step=start_step)
        self._bar = tqdm(
            total=num_steps, initial=start_step, unit="step", disable=not section.progress
        )

    @property
    def metrics_bytes(self) -> int:
        """Length of `metrics.jsonl`, all of it on the disk."""
        if not self._main:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()

    def write(self, step: int, kind: str, **values: object) -> None:
        """Append one record to `metrics.jsonl`."""
        if self._main:
            record = {"step": step, "kind": kind, **values}
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()  # whoever follows the file sees whole lines

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Draw values in TensorBoard."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def probabilities(self, step: int, probabilities: Tensor) -> None:
        """Draw the probabilities [N,K] as an image, a bright cell for a likely branch."""
        if self._writer is not None:
            cells = probabilities.float().cpu().numpy()
            side = max(1, min(16, 1024 // max(cells.shape)))
            image = np.kron(cells, np.ones((side, side), np.float32))
            self._writer.add_image("grouping/probabilities", image, step, dataformats="HW")

    def advance(self, samples: int, shown: dict[str, Any]) -> None:
        """Move the bar to the step of a log record, and show values and samples per second."""
        if not self._main:
            return
        step, (start, before) = shown.pop("step"), self._since
        now = time.perf_counter()
        speed = samples * (step - before) / max(now - start, 1e-9)
        self._since = (now, step)
        self._bar.set_postfix({**shown, "samples/s": f"{speed:.0f}"}, refresh=False)
        self._bar.update(step - self._bar.n)
        self.scalars(step, {"speed/samples_per_second": speed})

    def expect(self, num_steps: int) -> None:
        """Let the bar end at this step."""
        if self._main:
            self._bar.total = num_steps

    def close(self) -> None:
        """Finish all files."""
        if not self._main:
            return
        self._bar.close()
        self._file.close()
        if self._writer is not None:
            self._writer.close()
