"""The one error that the data pipelines raise for data that cannot be used."""


class DataError(ValueError):
    """Shards, a manifest or a request for labels cannot be used.

    The message names the file (and member or field), the value found and what is allowed.
    """

    def __str__(self) -> str:
        """The message alone: torch re-raises a loader worker's error as the text of its traceback,
        whose last entry is the message."""
        marker = f"{type(self).__module__}.{type(self).__qualname__}: "
        return super().__str__().rpartition(marker)[2].rstrip("\n")


class SourceError(DataError):
    """A remote source did not answer, however often it was asked: no fault of the data."""
