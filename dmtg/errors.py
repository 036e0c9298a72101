"""The error of data that cannot be used, which packages that know nothing of each other raise."""


class DataError(ValueError):
    """A picture, shards, a manifest or a request for labels cannot be used.

    The message names the file (and member or field), the value found and what is allowed.
    """

    def __str__(self) -> str:
        """Return the message without a traceback.

        torch re-raises an error of a loader worker with the worker's traceback as its text. The
        last entry of that text is the message.
        """
        marker = f"{type(self).__module__}.{type(self).__qualname__}: "
        return super().__str__().rpartition(marker)[2].rstrip("\n")
