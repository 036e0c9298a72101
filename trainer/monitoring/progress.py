"""The progress of a run on the console: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from tqdm import tqdm

from data_pipelines.reading.collate import Batch

logger = logging.getLogger(__name__)

_LINE_SECONDS = 30.0  # between two lines where there is no terminal
_FORMAT = "{desc} {n_fmt}/{total_fmt} {percentage:3.0f}% |{bar:8}| {remaining} left{postfix}"


class AboveBar(logging.StreamHandler):
    """Logs to standard error, above the progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            with tqdm.external_write_mode(file=self.stream):
                self.stream.write(self.format(record) + self.terminator)
                self.flush()
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)


class ProgressBar:
    """The steps of a run with the time left and the values of the last log record.

    Without a terminal, as in the log of a job, it logs a line of them every half minute.

    Args:
        num_steps: Steps of the whole run.
        start_step: Steps done before this start.
        enabled: Whether anything is shown.
    """

    def __init__(self, num_steps: int, start_step: int, *, enabled: bool) -> None:
        self._enabled = enabled
        self._on_terminal = enabled and sys.stderr.isatty()
        self._begun, self._start_step = time.monotonic(), start_step
        self._line_at = self._begun + _LINE_SECONDS
        self._bar = tqdm(
            desc="step",
            total=num_steps,
            initial=start_step,
            disable=not self._on_terminal,
            bar_format=_FORMAT,
            **_width(),
        )
        self._total = num_steps

    def advance(self, step: int, values: Mapping[str, str]) -> None:
        """Move to a step, and show values by their names."""
        text = ", ".join(f"{name} {value}" for name, value in values.items())
        if self._on_terminal:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if self._enabled and (now >= self._line_at or step == self._total):
            self._line_at = now + _LINE_SECONDS
            logger.info("step %d of %d%s, %s", step, self._total, self._time_left(step, now), text)

    def _time_left(self, step: int, now: float) -> str:
        done = step - self._start_step
        if not done or step >= self._total:
            return ""
        seconds = (self._total - step) * (now - self._begun) / done
        return f", {timedelta(seconds=round(seconds))} left"

    def expect(self, num_steps: int) -> None:
        """Set the last step."""
        self._total = self._bar.total = num_steps

    def track(self, batches: Iterable[Batch], samples: int, processes: int) -> Iterator[Batch]:
        """Yield the batches of an evaluation, with a bar of its samples on a terminal.

        Args:
            samples: Number that all processes evaluate.
            processes: Their number.
        """
        with tqdm(
            desc="evaluated samples",
            total=samples,
            disable=not self._on_terminal,
            bar_format=_FORMAT,
            leave=False,
            **_width(),
        ) as bar:
            for batch in batches:
                yield batch
                bar.update(min(len(batch.images) * processes, samples - bar.n))

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def _width() -> dict[str, Any]:
    """Return tqdm's options for the width: that of the terminal, if it tells one."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return {"dynamic_ncols": True} if columns else {"ncols": 80}
