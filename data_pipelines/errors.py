"""The errors that the data pipelines raise for data that cannot be used."""


class DataError(ValueError):
    """Shards, a manifest or a request for labels cannot be used.

    The message names the file (and member or field), the value found and what is allowed.
    """

    def __str__(self) -> str:
        """Return the message without a traceback.

        torch re-raises an error of a loader worker with the worker's traceback as its text. The
        last entry of that text is the message.
        """
        marker = f"{type(self).__module__}.{type(self).__qualname__}: "
        return super().__str__().rpartition(marker)[2].rstrip("\n")


class DamageError(DataError):
    """The bytes of a file are not those that were recorded; those of another copy may be."""


class UnreadableColumnsError(DataError):
    """No label of a column could be read: the conversion would drop the column. Exit code 1."""


class SourceError(DataError):
    """A remote source refuses access, or did not answer in time; the data may be intact."""
