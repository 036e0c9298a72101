"""Byte ranges from any fsspec URL, asked for again when the source fails."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import sync

from data_pipelines.errors import DataError, SourceError

logger = logging.getLogger(__name__)

RETRY_SECONDS = 120.0
FIRST_WAIT = 0.5  # seconds before the second attempt; each further wait is twice as long
LONGEST_WAIT = 30.0
TIMEOUT = 60.0  # seconds that an attempt may take

_HOPELESS = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_Result = TypeVar("_Result")


def check_url(location: str) -> str:
    """The location itself, unless it would run a command.

    Raises:
        DataError: It is a `pipe:`.
    """
    if location.strip().lower().startswith("pipe:"):
        raise DataError(
            f"{location!r}: pipe: would run a command; allowed are paths and URLs such as "
            "s3://bucket/shards"
        )
    return location


class Remote:
    """Files under one URL.

    The connection belongs to the process that made it: a forked process and a pickled copy make
    their own.

    Args:
        url: URL of the folder, such as `s3://bucket/shards` or `https://host/shards`.
        retry_seconds: For how long a source that fails is asked again.

    Raises:
        DataError: The protocol is unknown, or its package is not installed.
    """

    def __init__(self, url: str, retry_seconds: float = RETRY_SECONDS) -> None:
        self._retry_seconds = retry_seconds
        self.url = check_url(url).rstrip("/")
        self._connection: tuple[int, Any] = (0, None)
        self._connect()

    def url_of(self, name: str) -> str:
        """URL of a file."""
        return f"{self.url}/{name}"

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """A range of a file, or all of it.

        Raises:
            DataError: There is no such file, or the source does not give ranges.
            SourceError: The source does not answer.
        """
        url = self.url_of(name)
        end = None if size is None else offset + size

        def fetch() -> bytes:
            data = self._call("cat_file", url, start=None if size is None else offset, end=end)
            if size is not None and len(data) > size:
                raise DataError(f"{url}: the server does not give ranges of bytes, it sent all")
            if size is not None and len(data) < size:
                raise EOFError(f"{len(data)} of {size} bytes came")
            return data

        return _patiently(url, fetch, self._retry_seconds)

    def sizes(self) -> dict[str, int] | None:
        """Size in bytes of every file by name, None where files cannot be listed.

        Raises:
            DataError: There is no such folder.
            SourceError: The source does not answer.
        """
        if self.url.startswith(("http://", "https://")):
            return None
        entries = _patiently(
            self.url, lambda: self._call("ls", self.url, detail=True), self._retry_seconds
        )
        return {e["name"].rpartition("/")[2]: e["size"] for e in entries if e["type"] == "file"}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connection": (0, None)}

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        system = self._connect()
        if system.async_impl:  # only these can be given up on
            function = getattr(system, f"_{method}")
            return sync(system.loop, function, *arguments, timeout=TIMEOUT, **options)
        return getattr(system, method)(*arguments, **options)

    def _connect(self) -> Any:  # noqa: ANN401 - a file system of fsspec, which has no types
        if self._connection[0] != os.getpid():
            # A listing that was remembered would hide files that were written meanwhile
            try:
                system, _ = fsspec.url_to_fs(self.url, use_listings_cache=False)
            except (ValueError, ImportError) as error:
                raise DataError(f"{self.url}: cannot be opened: {error}") from error
            self._connection = (os.getpid(), system)
        return self._connection[1]


class Patience:
    """Waits, ever longer, between the attempts at something that fails, and gives up in time.

    Args:
        seconds: After the first failure, at which it gives up.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since = time.monotonic()
        self.failures = 0

    def next_wait(self) -> float | None:
        """Seconds to wait after one more failure; None to give up."""
        self.failures += 1
        if self.failures == 1:
            self._since = time.monotonic()
        wait = min(FIRST_WAIT * 2 ** min(self.failures - 1, 32), LONGEST_WAIT)
        late = time.monotonic() - self._since + wait > self._seconds
        return None if late else wait


def _patiently(url: str, call: Callable[[], _Result], retry_seconds: float) -> _Result:
    """The result of a call that is made again, after ever longer waits, while it fails."""
    patience = Patience(retry_seconds)
    while True:
        try:
            return call()
        except DataError:  # noqa: PERF203 - it is there to try again
            raise
        except _HOPELESS as error:
            raise DataError(f"{url}: missing") from error
        except Exception as error:  # what a network file system raises is its own affair
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            wait = patience.next_wait()
            if wait is None:
                raise SourceError(
                    f"{url}: failed {patience.failures} times in {retry_seconds:g} s, at last "
                    f"with {reason}"
                ) from error
            logger.warning("%s: %s; trying again in %.1f s", url, reason, wait)
            time.sleep(wait)
