"""Errors that end a run with a message rather than a traceback."""


class UserError(ValueError):
    """The configuration, an argument or a folder is not usable; the program exits with code 2."""


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the last checkpoint is from before. Exit code 1."""


class SaveError(Exception):
    """A checkpoint could not be written; older ones are whole. Exit code 1."""
