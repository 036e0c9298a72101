"""Errors that the person who started the run can mend."""


class UserError(ValueError):
    """The configuration, an argument or a folder is not usable; the program exits with code 2."""
