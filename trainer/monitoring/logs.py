"""What a run writes down while it trains: log files, metrics.jsonl, TensorBoard and the bar."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections import deque
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from trainer.config.log import LogSection
from trainer.errors import UserError
from trainer.run_folder import RunFolder

logger = logging.getLogger(__name__)


class _Early(logging.Handler):
    """Keeps the last records of the time before the run's folder may be written into."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=1000)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def setup_logging(rank: int, world_size: int) -> None:
    """Log to standard error; with several processes every line names its rank.

    Rank 0 shows what it does, the others only warnings; `open_rank_log` takes all of it.
    """
    who = f" [rank {rank}]" if world_size > 1 else ""
    shown = logging.StreamHandler()
    shown.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s{who} %(name)s: %(message)s",
        handlers=[shown, _Early()],
        force=True,
    )
    # Both announce every collective and kernel build at INFO.
    for name in ("DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)


def open_rank_log(folder: RunFolder, rank: int) -> logging.Handler:
    """Append this process's lines to `logs/rank-R.log` from here on, after those from before."""
    folder.logs.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder.logs / f"rank-{rank}.log", encoding="utf-8")
    host = socket.gethostname().replace("%", "%%")
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s {host} %(levelname)s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    for early in [other for other in root.handlers if isinstance(other, _Early)]:
        while early.records:
            handler.emit(early.records.popleft())
    root.addHandler(handler)
    return handler


class RunLog:
    """Writes on the main process only, but for the log file that every process has.

    `metrics.jsonl` holds what the run computed and no times, so that a resumed run writes the
    same bytes as one that was never interrupted.

    Args:
        folder: The run's folder.
        section: The `log` section.
        rank: Of this process; 0 is the main one.
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
        rank: int,
        start_step: int,
        num_steps: int,
        metrics_bytes: int,
    ) -> None:
        self._main = rank == 0
        self._writer: SummaryWriter | None = None
        self._lines = open_rank_log(folder, rank)
        if not self._main:
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

    def advance(self, step: int, shown: dict[str, Any]) -> None:
        """Move the bar to the step of a log record, and show values."""
        if self._main:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._bar.n)

    def expect(self, num_steps: int) -> None:
        """Let the bar end at this step."""
        if self._main:
            self._bar.total = num_steps

    def close(self, error: BaseException | None = None) -> None:
        """Close all files.

        Args:
            error: What ended the run; this rank's log file gets its traceback.
        """
        if error is not None:
            trace = (type(error), error, error.__traceback__)
            self._lines.handle(
                logger.makeRecord(
                    logger.name, logging.ERROR, __file__, 0, "the run failed", (), trace
                )
            )
        logging.getLogger().removeHandler(self._lines)
        self._lines.close()
        if not self._main:
            return
        self._bar.close()
        self._file.close()
        if self._writer is not None:
            self._writer.close()
