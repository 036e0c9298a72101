"""The picture files that the rows of a table name, by path or URL."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from data_pipelines.convert.dataset_files import DatasetFiles
from data_pipelines.convert.tally import MissingLabel
from data_pipelines.decode.bounds import MAX_MEMBER_BYTES
from data_pipelines.errors import DataError, SourceError
from data_pipelines.shards.remote import RETRY_SECONDS, Remote
from dmtg.names import shortened

SKIP_SECONDS = 5.0  # for which a failing request is repeated if its image may be left out
_WEB = ("http://", "https://")


def is_url(path: str) -> bool:
    """Return whether a cell is a URL of a web server."""
    return path.lower().startswith(_WEB)


@dataclass(frozen=True)
class TableFiles:
    """The files that rows may name: those below one folder or URL.

    A row is a stranger's: it must not name any file of this machine. Without a folder that the user
    names, rows may also name any file of a web server.

    Attributes:
        root: A local folder, or a URL such as `https://host/photos`.
        any_url: Whether a row may name a URL of another server.
        skip_unreachable: Whether a file counts as missing whose server gives no answer, or refuses
            access. Otherwise this is an error.
    """

    root: str
    any_url: bool = False
    skip_unreachable: bool = False

    def is_remote(self, path: str) -> bool:
        """Return whether a file comes from a server."""
        return "://" in self.root or is_url(path)

    def read(self, path: str) -> bytes:
        """Return the content of a file that a row names.

        Raises:
            DataError: The row may not name this file.
            SourceError: The server gives no answer, or refuses access.
            MissingLabel: There is no such file, or it cannot be read or is too large.
        """
        outside = ".." in unquote(urlsplit(path).path).split("/")
        if is_url(path):
            if not self.any_url and (outside or not path.startswith(f"{self.root.rstrip('/')}/")):
                raise self._refused(path, "; without --images, rows may name any URL")
            folder, _, name = path.rpartition("/")
            return self._fetched(folder, name)
        if "://" not in self.root:
            return self._local(path)
        if outside or "://" in path:
            raise self._refused(path)
        return self._fetched(self.root, path.lstrip("/"))

    def _refused(self, path: str, hint: str = "") -> DataError:
        return DataError(
            f"{self.root}: a row names {shortened(repr(path), 200)}, allowed are files below it"
            f"{hint}"
        )

    def _local(self, path: str) -> bytes:
        try:
            return DatasetFiles(self.root).read(path)
        except MissingLabel as missing:
            if isinstance(missing.__cause__, FileNotFoundError | NotADirectoryError):
                raise MissingLabel("no file") from missing
            raise
        except DataError as error:
            raise DataError(f"{error}; name the folder of the images by --images") from error

    def _fetched(self, folder: str, name: str) -> bytes:
        seconds = SKIP_SECONDS if self.skip_unreachable else RETRY_SECONDS
        try:
            return _remote(folder, seconds).read_small(name, MAX_MEMBER_BYTES)
        except SourceError as error:
            if not self.skip_unreachable:
                raise SourceError(
                    f"{error}; run the command again to continue, or leave such images out by "
                    "--skip-unreachable"
                ) from error
            raise MissingLabel("unreachable") from error
        except DataError as error:
            reason = "no file" if str(error).endswith(": missing") else "unreadable"
            raise MissingLabel(reason) from error


@lru_cache(maxsize=1024)
def _remote(folder: str, retry_seconds: float) -> Remote:
    return Remote(folder, retry_seconds)


def default_files(table: Path) -> TableFiles:
    """Return the files that rows may name where the user names no folder."""
    return TableFiles(str(table.parent), any_url=True)
