"""Write checkpoints on the main process, in a thread beside the training."""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Thread
from types import TracebackType

from accelerate import Accelerator

from trainer.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trainer.checkpoints.files import folder_of_step
from trainer.config.run import RunSection
from trainer.engines.agreement import first_message
from trainer.errors import SaveError

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes snapshots in a thread of rank 0, one at a time, and raises its errors on all ranks.

    As a context manager it finishes what is being written, however the training ends; where
    another rank has failed, for as long as the watchdog allows.

    Args:
        accelerator: Of the run.
        folder: Of the checkpoints.
        section: How many are kept, and whether the training waits for each.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, section: RunSection) -> None:
        self._accelerator = accelerator
        self._folder = folder
        self._section = section
        self._thread: Thread | None = None
        self._error: str | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.wait()
            return
        self._join()  # the other ranks may be gone, so that nothing can be agreed on
        if self._error is not None:
            logger.error("%s", self._error)

    def start(self, snapshot: Checkpoint | None) -> None:
        """Begin to write; `wait` must have been called before. Every rank must call it.

        Args:
            snapshot: It must not be changed any more; None on all ranks but the first.

        Raises:
            SaveError: Without `run.async_checkpoint`, as `check`.
        """
        assert self._thread is None, "one at a time"
        if snapshot is not None:
            self._thread = Thread(target=self._write, args=(snapshot,), name="checkpoint")
            self._thread.start()
        if not self._section.async_checkpoint:
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written; every rank must call it.

        Raises:
            SaveError: As `check`.
        """
        self._join()
        self.check()

    def check(self) -> None:
        """Raise if a write has failed, without waiting; every rank must call it.

        Raises:
            SaveError: On every rank; the checkpoints before are whole.
        """
        message = first_message(self._accelerator, self._error)
        if message is not None:
            self._error = None
            raise SaveError(message)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, snapshot: Checkpoint) -> None:
        section = self._section
        try:
            save_checkpoint(
                self._folder, snapshot, keep_last=section.keep_last, keep_every=section.keep_every
            )
        except Exception as error:
            final = folder_of_step(self._folder, snapshot.progress.step)
            self._error = f"checkpoint {final} cannot be written: {error}; those before it are left"
