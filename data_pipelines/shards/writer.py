"""Write samples to WebDataset shards, each of which gets its name only when it is complete."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from data_pipelines.decode.bounds import check_member_size, check_sample_size
from data_pipelines.errors import DataError
from data_pipelines.shards.index_file import write_index
from data_pipelines.shards.manifest import SHARD_NAME, Shard, Split
from dmtg.files import PARTIAL_PREFIX, partial_path, publish
from dmtg.names import MAX_LENGTH, shortened

_EARLIER_PARTIALS = (".tar.partial", ".tar.index.partial")  # names in earlier versions
_SUFFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+")


class ShardFile:
    """One shard under a temporary name; bytes are hashed and counted as they are written.

    Args:
        path: Final path of the shard; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        from webdataset import TarWriter

        self.path = path
        self.samples = 0
        self.bytes = 0
        self.sha256 = hashlib.sha256()
        self.partial = partial_path(path)
        self.file = open(self.partial, "wb")  # noqa: SIM115
        self.tar = TarWriter(self, user="", group="", encoder=False, mtime=0)

    def write(self, data: bytes) -> None:
        """Append bytes of the tar file; the tar writer calls this."""
        self.file.write(data)
        self.sha256.update(data)
        self.bytes += len(data)

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample.

        Args:
            key: Name of the sample, without dot or slash.
            members: Bytes by suffix, such as `rgb.png`.

        Raises:
            ValueError: The key or a suffix cannot be stored.
            DataError: The sample is larger than one that can be read.
        """
        if not key or re.search(r"[./\0]", key):
            raise ValueError(f"key: {key!r} must be a name without dot or slash")
        if not members:
            raise ValueError(f"members: sample {key!r} has none, at least one is needed")
        for suffix, data in members.items():
            if not _SUFFIX.fullmatch(suffix):
                raise ValueError(f"members: {suffix!r} must look like field.codec, as in rgb.png")
            check_member_size(suffix, len(data))
        check_sample_size(sum(map(len, members.values())))
        self.tar.write({"__key__": key, **members})
        self.samples += 1

    def finish(self) -> Shard:
        """Rename the shard to its final name and return its entry for the manifest."""
        self.tar.close()
        self.file.close()
        # The index is renamed first: a shard with its final name always has one.
        _, index = write_index(self.path, self.partial)
        publish(self.partial, self.path)
        return Shard(
            name=self.path.name,
            samples=self.samples,
            bytes=self.bytes,
            sha256=self.sha256.hexdigest(),
            index=index,
        )

    def discard(self) -> None:
        """Remove the temporary file."""
        self.tar.close()
        self.file.close()
        self.partial.unlink()


def shard_name(split: str, number: int) -> str:
    """Return the file name of a split's shard.

    Raises:
        DataError: The split has a name that no shard can have.
    """
    name = f"{split}-{number:06d}.tar"
    if len(split) > MAX_LENGTH or not re.fullmatch(SHARD_NAME, name):
        raise DataError(
            f"split: found {shortened(repr(split))}; allowed are 1 to {MAX_LENGTH} of A-Z a-z 0-9 "
            "_ . -, of which the first is none of . -"
        )
    return name


def remove_partial_shards(root: Path) -> None:
    """Remove the temporary files of shards and indexes that killed processes left in a folder."""
    for path in root.iterdir():
        unfinished = path.name.startswith(PARTIAL_PREFIX) and ".tar" in path.name
        if unfinished or path.name.endswith(_EARLIER_PARTIALS):
            path.unlink()


class ShardWriter:
    """Context manager that writes one split to shards `{split}-{number:06d}.tar`.

    The bytes depend only on the samples. Shards that were finished before an exception stay; they
    are not read without a manifest.

    Args:
        root: Folder of the shards, created if absent.
        split: Name of the split.
        samples_per_shard: Number of samples in every shard but the last.

    Raises:
        DataError: No shard can have the name of the split.
    """

    def __init__(self, root: Path, split: str, samples_per_shard: int = 1000) -> None:
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard: {samples_per_shard} must be at least 1")
        self.root = root
        self.name = split
        self.samples_per_shard = samples_per_shard
        self.shards: tuple[Shard, ...] = ()
        self._keys: set[str] = set()
        self._open: ShardFile | None = None
        shard_name(split, 0)
        root.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish()
        elif self._open is not None:
            self._open.discard()
            self._open = None

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample.

        Args:
            key: Name of the sample, unique in the split, without dot or slash.
            members: Bytes by suffix, such as `rgb.png`; a missing label is left out.

        Raises:
            DataError: The key was written before.
            ValueError: The key or a suffix cannot be stored.
        """
        if key in self._keys:
            raise DataError(f"{self.root}: split {self.name}: key {key!r} is written twice")
        if self._open is None:
            self._open = ShardFile(self.root / shard_name(self.name, len(self.shards)))
        self._open.add(key, members)
        self._keys.add(key)
        if self._open.samples == self.samples_per_shard:
            self._finish()

    def split(
        self,
        labelled: Mapping[str, int],
        class_counts: Mapping[str, tuple[int, ...]] | None = None,
    ) -> Split:
        """Return the manifest's entry for the split; call it after the `with` block.

        Args:
            labelled: Number of samples that have a value, by field name.
            class_counts: Number of samples of each class id, by field name; None if unknown.

        Raises:
            DataError: Nothing was written.
        """
        assert self._open is None, "split() inside the with block"
        if not self.shards:
            raise DataError(f"{self.root}: split {self.name}: no samples were written")
        return Split(
            shards=self.shards, labelled=dict(labelled), class_counts=dict(class_counts or {})
        )

    def _finish(self) -> None:
        if self._open is not None and self._open.samples:
            self.shards += (self._open.finish(),)
        elif self._open is not None:  # its first sample raised an error
            self._open.discard()
        self._open = None
