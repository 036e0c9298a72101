"""Byte ranges of files behind any fsspec URL, with retries when the source fails."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from data_pipelines.errors import DataError, SourceError

if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying

logger = logging.getLogger(__name__)

RETRY_SECONDS = 120.0
FIRST_WAIT = 0.5  # seconds before the second attempt; doubled after each further failure
LONGEST_WAIT = 30.0  # seconds
TIMEOUT = 60.0  # seconds that an attempt may take

_HTTP = re.compile(r"(?:^|::)(https?)://")
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_Result = TypeVar("_Result")


def check_url(location: str) -> str:
    """Return the location unchanged; refuse one that would run a command.

    Raises:
        DataError: It is a `pipe:` URL.
    """
    if location.strip().lower().startswith("pipe:"):
        raise DataError(
            f"{location!r}: pipe: would run a command; allowed are paths and URLs such as "
            "s3://bucket/shards"
        )
    return location


def check_size(where: str, size: int, limit: int) -> None:
    """Check the size of a file that is read as a whole.

    Raises:
        DataError: It is larger than the limit in bytes.
    """
    if size > limit:
        raise DataError(f"{where}: {size} bytes, allowed are at most {limit}")


def client_options(url: str) -> dict[str, Any]:
    """Return the options of fsspec that bound the answers of HTTP servers in a URL.

    Raises:
        ImportError: The package that fsspec needs for HTTP is not installed.
    """
    protocols = _HTTP.findall(url)
    if not protocols:
        return {}
    from data_pipelines.shards.http_client import bounded_client

    return {protocol: {"get_client": bounded_client} for protocol in protocols}


class Remote:
    """Files under one URL.

    A connection is valid only in the process that opened it: a forked process and a pickled copy
    open another one.

    Args:
        url: URL of the folder, such as `s3://bucket/shards` or `https://host/shards`.
        retry_seconds: How long a failing request is retried.

    Raises:
        DataError: The protocol is unknown, or its package is not installed.
    """

    def __init__(self, url: str, retry_seconds: float = RETRY_SECONDS) -> None:
        self._retry_seconds = retry_seconds
        self.url = check_url(url).rstrip("/")
        self._connection: tuple[int, Any] = (0, None)
        self._connect()

    def url_of(self, name: str) -> str:
        """Return the URL of a file."""
        return f"{self.url}/{name}"

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return a range of a file.

        Raises:
            DataError: The file does not exist, or the server does not support ranges.
            SourceError: The source does not answer.
        """
        url = self.url_of(name)

        def fetch() -> bytes:
            data: bytes = self._call("cat_file", url, start=offset, end=offset + size)
            if len(data) > size:
                raise DataError(f"{url}: the server does not give ranges of bytes, it sent all")
            if len(data) < size:
                raise EOFError(f"{len(data)} of {size} bytes came")
            return data

        return _retried(url, fetch, self._retry_seconds)

    def read_small(self, name: str, limit: int) -> bytes:
        """Return the content of a file whose size is not known.

        Args:
            name: The file.
            limit: The size in bytes that it may have.

        Raises:
            DataError: The file does not exist, or is larger.
            SourceError: The source does not answer.
        """
        url = self.url_of(name)

        def fetch() -> bytes:
            if not _HTTP.match(url):  # an HTTP client bounds what it reads, and has no sizes
                check_size(url, self._call("info", url)["size"] or 0, limit)
            data: bytes = self._call("cat_file", url)
            check_size(url, len(data), limit)
            return data

        return _retried(url, fetch, self._retry_seconds)

    def sizes(self) -> dict[str, int] | None:
        """Return the size in bytes of every file by name; None where files cannot be listed.

        Raises:
            DataError: The folder does not exist.
            SourceError: The source does not answer.
        """
        if self.url.startswith(("http://", "https://")):
            return None
        entries = _retried(
            self.url, lambda: self._call("ls", self.url, detail=True), self._retry_seconds
        )
        return {e["name"].rpartition("/")[2]: e["size"] for e in entries if e["type"] == "file"}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connection": (0, None)}

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        from fsspec.asyn import sync

        system = self._connect()
        if system.async_impl:  # only asynchronous file systems support a timeout
            function = getattr(system, f"_{method}")
            return sync(system.loop, function, *arguments, timeout=TIMEOUT, **options)
        return getattr(system, method)(*arguments, **options)

    def _connect(self) -> Any:  # noqa: ANN401 - a file system of fsspec, which has no types
        if self._connection[0] != os.getpid():
            import fsspec

            # A cached listing would not show files that were written after it.
            try:
                system, _ = fsspec.url_to_fs(
                    self.url, use_listings_cache=False, **client_options(self.url)
                )
            except (ValueError, ImportError) as error:
                raise DataError(f"{self.url}: cannot be opened: {error}") from error
            self._connection = (os.getpid(), system)
        return self._connection[1]


class FailureDeadline:
    """Stop condition for tenacity: the next attempt would start too long after the first failure.

    The time of the first attempt is not counted: an attempt that hangs until its timeout must not
    use up the time for retries.

    Args:
        seconds: Allowed time from the first failure to the next attempt.

    Attributes:
        failures: Failures since the last `reset`.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.failures = 0
        self._first_failure = 0.0

    def __call__(self, state: RetryCallState) -> bool:
        """Count a failure; return whether to give up."""
        now = state.outcome_timestamp or 0.0
        if self.failures == 0:
            self._first_failure = now
        self.failures += 1
        return now - self._first_failure + state.upcoming_sleep > self.seconds

    def reset(self) -> None:
        """Forget the failures so far, after a success."""
        self.failures = 0


def build_retrying(
    deadline: FailureDeadline,
    *,
    log: Callable[[BaseException, float], None],
    give_up: Callable[[BaseException], Exception],
) -> Retrying:
    """Return a tenacity controller that retries a call on any error but `DataError`.

    Args:
        deadline: When to give up.
        log: Called with the error and the seconds to wait before each further attempt.
        give_up: Converts the last error to the exception to raise.
    """
    from tenacity import Retrying, retry_if_exception, wait_exponential

    def error_of(state: RetryCallState) -> BaseException:
        error = state.outcome.exception() if state.outcome else None
        assert error is not None, "called after a failed attempt"
        return error

    def fail(state: RetryCallState) -> None:
        error = error_of(state)
        raise give_up(error) from error

    return Retrying(
        retry=retry_if_exception(_is_transient),
        wait=wait_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
        stop=deadline,
        before_sleep=lambda state: log(error_of(state), state.upcoming_sleep),
        retry_error_callback=fail,
    )


def _is_transient(error: BaseException) -> bool:
    """Return whether to retry: network file systems raise exceptions of many libraries."""
    return isinstance(error, Exception) and not isinstance(error, DataError)


def _retried(url: str, call: Callable[[], _Result], retry_seconds: float) -> _Result:
    """Return the result of a call, which is repeated with growing waits while it fails."""
    deadline = FailureDeadline(retry_seconds)

    def attempt() -> _Result:
        try:
            return call()
        except _MISSING as error:
            raise DataError(f"{url}: missing") from error

    def log(error: BaseException, wait: float) -> None:
        logger.warning("%s: %s; trying again in %.1f s", url, _reason(error), wait)

    def give_up(error: BaseException) -> SourceError:
        return SourceError(
            f"{url}: failed {deadline.failures} times in {retry_seconds:g} s, at last with "
            f"{_reason(error)}"
        )

    return build_retrying(deadline, log=log, give_up=give_up)(attempt)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
