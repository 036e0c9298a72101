"""The logs of a training run: log files, metrics.jsonl, trackers and the progress bar."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from data_pipelines.reading.collate import Batch
from dmtg.terminal import ShownFormatter, protect_output
from model.grouping.group_start import GroupStart
from trainer.config.log import LogSection
from trainer.errors import UserError
from trainer.json_file import to_json
from trainer.monitoring.grouping_file import GroupingFile
from trainer.monitoring.progress import AboveBar, ProgressBar
from trainer.monitoring.trackers import Kind, Trackers
from trainer.run_folder import RunFolder

logger = logging.getLogger(__name__)


class _Early(logging.Handler):
    """Keeps the last records from before the run's folder may be written to."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=1000)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def setup_logging(rank: int, world_size: int) -> None:
    """Log to standard error; with several processes every line names its rank.

    Rank 0 shows information, the others only warnings; `open_rank_log` writes all records. No line
    of any handler holds credentials or characters that control a terminal.
    """
    protect_output()
    who = f" [rank {rank}]" if world_size > 1 else ""
    shown = AboveBar()
    shown.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    shown.setFormatter(ShownFormatter(f"%(asctime)s %(levelname)s{who} %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[shown, _Early()], force=True)
    logging.captureWarnings(True)  # a line of the log, above the progress bar
    # Both log every collective and kernel build at INFO.
    for name in ("DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)


def open_rank_log(folder: RunFolder, rank: int) -> logging.Handler:
    """Append the records of this process to `logs/rank-R.log`, beginning with the earlier ones."""
    folder.logs.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder.logs / f"rank-{rank}.log", encoding="utf-8")
    host = socket.gethostname().replace("%", "%%")
    handler.setFormatter(ShownFormatter(f"%(asctime)s {host} %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for early in [other for other in root.handlers if isinstance(other, _Early)]:
        while early.records:
            handler.emit(early.records.popleft())
    root.addHandler(handler)
    return handler


class RunLog:
    """Writes on the main process only, except for the log file of every process.

    `metrics.jsonl` is written by this program and by no tracker of `accelerate`: it holds computed
    values and no times, and is cut to its length in the checkpoint at a resume, so that a resumed
    run writes the same bytes as one that was never interrupted.

    Args:
        folder: The run's folder.
        section: The `log` section.
        rank: Rank of this process; 0 is the main one.
        start_step: Steps done before.
        num_steps: Steps of the whole run.
        metrics_bytes: Length of `metrics.jsonl` at `start_step`; the rest is cut off.
        run_ids: Ids of the tracker runs to continue, from the checkpoint.
        settings: The configuration, which new tracker runs show.

    Raises:
        UserError: `metrics.jsonl` is shorter than that, or a tracker cannot be started.
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
        run_ids: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._main = rank == 0
        self._trackers: Trackers | None = None
        self._opened = ExitStack()
        self._lines = open_rank_log(folder, rank)
        self._opened.callback(_remove, self._lines)
        if not self._main:
            return
        try:
            self._file = self._opened.enter_context(folder.metrics.open("ab"))
            size = self._file.seek(0, os.SEEK_END)
            if size < metrics_bytes:
                raise UserError(
                    f"{folder.metrics}: has {size} bytes, the checkpoint was written at "
                    f"{metrics_bytes}"
                )
            logged = _last_steps(folder.metrics, metrics_bytes, start_step)
            self._grouping = GroupingFile(folder.grouping, start_step, section.every)
            self._trackers = Trackers(
                section,
                folder.out,
                start_step=start_step,
                run_ids=run_ids or {},
                logged=logged,
                settings=settings or {},
            )
            self._opened.callback(self._trackers.close)
            self._file.truncate(metrics_bytes)
            self._file.seek(0, os.SEEK_END)
            self._bar = ProgressBar(num_steps, start_step, enabled=section.progress)
            self._opened.callback(self._bar.close)
        except BaseException as error:
            self.close(error)
            raise

    @property
    def metrics_bytes(self) -> int:
        """Length of `metrics.jsonl`, all of which is on the disk."""
        if not self._main:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()

    @property
    def run_ids(self) -> dict[str, str]:
        """Ids of the tracker runs, for the checkpoint; empty on all but the main process."""
        return {} if self._trackers is None else dict(self._trackers.run_ids)

    def write(self, step: int, kind: str, **values: object) -> None:
        """Append one record to `metrics.jsonl`; numbers that are not finite become null."""
        if self._main:
            record = {"step": step, "kind": kind, **values}
            self._file.write(to_json(record).encode() + b"\n")
            self._file.flush()  # a reader that follows the file gets whole lines

    def scalars(self, step: int, values: dict[str, float], kind: Kind = "train") -> None:
        """Log values to the trackers."""
        if self._trackers is not None:
            self._trackers.log(step, values, kind)

    def probabilities(self, step: int, probabilities: Tensor) -> None:
        """Log the probabilities [N,K]: to `grouping.jsonl`, and as an image to the trackers.

        A bright cell of the image is a likely branch.
        """
        if self._main:
            self._grouping.probabilities(step, probabilities)
        if self._trackers is not None:
            cells = probabilities.float().cpu().numpy()
            side = max(1, min(16, 1024 // max(cells.shape)))
            image = np.kron(cells, np.full((side, side), 255, np.float32))
            self._trackers.log_image(step, "grouping/probabilities", image.astype(np.uint8))

    def group_start(self, step: int, start: GroupStart) -> None:
        """Write the affinities of the tasks and how firm their groups are to `grouping.jsonl`."""
        if self._main:
            self._grouping.pairs(step, "affinity", start.affinity)
            if start.co_assignment is not None:
                self._grouping.pairs(step, "co_assignment", start.co_assignment)

    def advance(self, step: int, shown: Mapping[str, str]) -> None:
        """Move the bar to the step of a log record, and show values."""
        if self._main:
            self._bar.advance(step, shown)

    def expect(self, num_steps: int) -> None:
        """Set the last step of the bar."""
        if self._main:
            self._bar.expect(num_steps)

    def track(self, batches: Iterable[Batch], samples: int, processes: int) -> Iterable[Batch]:
        """Yield the batches of an evaluation, and show how far it is.

        Args:
            samples: Number that all processes evaluate.
            processes: Their number.
        """
        return self._bar.track(batches, samples, processes) if self._main else batches

    def close(self, error: BaseException | None = None) -> None:
        """Close all files and finish the tracker runs.

        Args:
            error: The error that ended the run; this rank's log file gets its traceback.
        """
        if error is not None:
            trace = (type(error), error, error.__traceback__)
            self._lines.handle(
                logger.makeRecord(
                    logger.name, logging.ERROR, __file__, 0, "the run failed", (), trace
                )
            )
        self._opened.close()


def _remove(handler: logging.Handler) -> None:
    """Close a handler of the root logger."""
    logging.getLogger().removeHandler(handler)
    handler.close()


def _last_steps(path: Path, metrics_bytes: int, start_step: int) -> dict[Kind, int]:
    """Return the last steps of `metrics.jsonl` that were logged before, by kind of record.

    Steps up to the checkpoint are never made again; only the last evaluation follows the checkpoint
    of its step.

    Args:
        path: The file, before it is cut off.
        metrics_bytes: Its length at the checkpoint.
        start_step: Step of the checkpoint.
    """
    last: dict[Kind, int] = {"train": start_step, "eval": start_step - 1}
    with open(path, "rb") as file:
        file.seek(metrics_bytes)
        for line in file:
            with suppress(ValueError):  # a line that was cut off by the end of the process
                record = json.loads(line)
                if record["kind"] in last:
                    last[record["kind"]] = max(last[record["kind"]], record["step"])
    return last
