"""A window of steps under torch's profiler, written as a trace for chrome://tracing or Perfetto."""

from __future__ import annotations

import logging

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from dmtg.files import atomic_path
from trainer.config.run import RunSection
from trainer.errors import UserError

logger = logging.getLogger(__name__)


class ProfileWindow:
    """Profiles the steps that `run.profile` names, once, on the ranks that are asked for.

    Args:
        section: The `run` section.
        rank: Rank of this process.
        num_steps: Steps of the whole run.

    Raises:
        UserError: The window begins after the last step.
    """

    def __init__(self, section: RunSection, rank: int, num_steps: int) -> None:
        self._start, self._end = section.profile_window or (0, 0)
        if section.profile is not None and self._start >= num_steps:
            raise UserError(
                f"run.profile: {section.profile} begins at step {self._start}, the run has only "
                f"{num_steps}; allowed are START:END with START below that"
            )
        enabled = rank == 0 or section.profile_ranks == "all"
        self._waiting = enabled and self._start < self._end
        name = f"rank-{rank}-steps-{self._start}-{self._end}.json"
        self._path = section.out / "profile" / name
        self._profile: profile | None = None
        self._steps_done = 0

    def before_step(self, step: int) -> None:
        """Start the profiler in the first step of this start of the run.

        A run that is resumed within the window makes no trace.

        Args:
            step: Steps done so far.
        """
        if not self._waiting:
            return
        self._waiting = False
        if step > self._start:
            return
        # One more than the steps done, so that a window from the very first step needs no special
        # case: it has no step in which the profiler could warm up.
        window = schedule(
            skip_first=self._start, wait=0, warmup=1, active=self._end - self._start, repeat=1
        )
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=lambda since_start: window(step + since_start + 1),
            on_trace_ready=self._write,
        )
        self._profile.start()

    def after_step(self, step: int, *, last: bool) -> None:
        """Advance the profiler; the trace is written when the window or the run ends.

        Args:
            step: Steps done so far.
            last: Whether this start of the run makes no other step.
        """
        if self._profile is None:
            return
        self._steps_done = step
        if last or step >= self._end:
            self._profile.stop()
            self._profile = None
        else:
            self._profile.step()

    def _write(self, finished: profile) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._path, sync=False) as partial:
            finished.export_chrome_trace(str(partial))
        logger.info(
            "the trace of steps %d to %d is in %s", self._start, self._steps_done, self._path
        )
