"""A window of steps under torch's profiler, written as a trace for chrome://tracing or Perfetto."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from trainer.config.run import RunSection
from trainer.errors import UserError

logger = logging.getLogger(__name__)


class ProfileWindow:
    """Profiles the steps that `run.profile` names, once, on the ranks that are asked for.

    Args:
        section: The `run` section.
        rank: Of this process.
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
        self._active = rank == 0 or section.profile_ranks == "all"
        name = f"rank-{rank}-steps-{self._start}-{self._end}.json"
        self._path = section.out / "profile" / name
        self._profile: profile | None = None

    def before_step(self, step: int) -> None:
        """Begin with the window; a run that is continued within it makes no trace.

        Args:
            step: Steps done so far.
        """
        if self._active and step == self._start < self._end:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            self._profile.start()

    def after_step(self, step: int, *, last: bool) -> None:
        """Write the trace if the window or the run ends.

        Args:
            step: Steps done so far.
            last: Whether this start of the run makes no other step.
        """
        if self._profile is None or not (last or step >= self._end):
            return
        self._profile.stop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(f"{self._path}.partial")
        self._profile.export_chrome_trace(str(partial))
        partial.replace(self._path)
        logger.info("the trace of steps %d to %d is in %s", self._start, step, self._path)
        self._profile = None
