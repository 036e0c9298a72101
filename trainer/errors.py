"""Errors that end a run with a message rather than a traceback."""


class UserError(ValueError):
    """The configuration, an argument or a folder is not usable; the program exits with code 2."""


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the last checkpoint is from before. Exit code 1."""


class SaveError(Exception):
    """A checkpoint could not be written; those before it are whole. Exit code 1."""


class Preempted(Exception):
    """The run was asked to stop and has saved; a start with `run.resume=auto` continues it.

    Attributes:
        step: Optimizer steps done.
        cause: `SIGUSR1`, `SIGTERM` or `run.max_minutes`, of any rank.
    """

    def __init__(self, step: int, cause: str) -> None:
        super().__init__(f"preempted by {cause} after step {step}; the run is saved")
        self.step = step
        self.cause = cause
