"""The errors that the data pipelines raise for data that cannot be used."""

from dmtg.errors import DataError as DataError


class DamageError(DataError):
    """The bytes of a file are not those that were recorded; those of another copy may be."""


class UnreadableColumnsError(DataError):
    """No label of a column could be read: the conversion would drop the column. Exit code 1."""


class SourceError(DataError):
    """A remote source refuses access, or did not answer in time; the data may be intact."""
