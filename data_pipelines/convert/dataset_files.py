"""Picture files that the rows of a dataset name: only those of the dataset itself are read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import fsspec

from data_pipelines.convert.tally import MissingLabel
from data_pipelines.decode.bounds import MAX_MEMBER_BYTES
from data_pipelines.errors import DataError
from dmtg.names import shortened

_ARCHIVE = "zip://"  # `zip://MEMBER::ARCHIVE`, as the `datasets` library names a file in one
_LOCAL = "file://"


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset.

    A path in a row is a stranger's: it could name any file of this machine, which would then be in
    the shards, or any URL.

    Attributes:
        dataset: Name on the hub, or a local folder or parquet file.
    """

    dataset: str

    def read(self, path: str) -> bytes:
        """Return the content of a file that a row names.

        Args:
            path: A path in the folder of the dataset, from there or from the root; or a URL of the
                dataset on the hub. `zip://MEMBER::` may precede both.

        Raises:
            DataError: The file is outside the dataset: elsewhere, through `..` or a symbolic link.
            MissingLabel: The file cannot be read, or is too large.
        """
        member, separator, container = path.rpartition("::")
        if separator and (not member.startswith(_ARCHIVE) or "::" in member):
            raise self._outside(path)
        place = self._local(path, container) if self.is_local else self._on_hub(path, container)
        try:
            with fsspec.open(f"{member}{separator}{place}", "rb") as file:
                data = bytes(file.read(MAX_MEMBER_BYTES + 1))
        except OSError as error:
            raise MissingLabel("unreadable") from error
        if len(data) > MAX_MEMBER_BYTES:
            raise MissingLabel("too large")
        return data

    @property
    def is_local(self) -> bool:
        """Whether the dataset is a folder or a file of this machine."""
        return Path(self.dataset).exists()

    def _local(self, path: str, container: str) -> str:
        source = Path(os.path.abspath(self.dataset))
        folder = source if source.is_dir() else source.parent
        name = container.removeprefix(_LOCAL)
        if "://" in name or ".." in PurePosixPath(name).parts:
            raise self._outside(path)
        place = (folder / name).resolve()
        if not any(place.is_relative_to(root) for root in _roots(folder)):
            raise self._outside(path)
        return str(place)

    def _on_hub(self, path: str, container: str) -> str:
        begins = tuple(f"hf://datasets/{self.dataset}{end}" for end in "@/")
        if not container.startswith(begins) or ".." in PurePosixPath(container).parts:
            raise self._outside(path)
        return container

    def _outside(self, path: str) -> DataError:
        return DataError(
            f"{self.dataset}: a row names the file {shortened(repr(path), 200)}, allowed are files "
            "of the dataset itself"
        )


def _roots(folder: Path) -> list[Path]:
    """Return the folders that hold the files of a dataset in a local folder.

    In the cache of the hub the files of `REPOSITORY/snapshots/REVISION` are links to those in
    `REPOSITORY/blobs`, which holds nothing else.
    """
    parents = [path.parent for path in (folder, *folder.parents)]
    blobs = [path.with_name("blobs").resolve() for path in parents if path.name == "snapshots"]
    return [folder.resolve(), *blobs]
