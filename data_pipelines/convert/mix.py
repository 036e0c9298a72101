"""Join folders of shards to one data set, without reading or rewriting samples."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_pipelines.convert.mixed_manifest import (
    Part,
    check_sources,
    default_name,
    joined_conversion,
    joined_manifest,
)
from data_pipelines.convert.run import locked
from data_pipelines.convert.shards import WORK_FOLDER
from data_pipelines.errors import DamageError, DataError
from data_pipelines.parallel import add_progress, mapped
from data_pipelines.progress import progress_bar
from data_pipelines.shards.manifest import (
    MANIFEST_NAME,
    SOURCE_NAME,
    Manifest,
    check_shards,
    index_name,
)
from data_pipelines.shards.sources import (
    COPY_BYTES,
    Folder,
    LocalFolder,
    StoredFile,
    open_folder,
)
from data_pipelines.shards.writer import remove_partial_shards
from dmtg.files import PARTIAL_PREFIX, atomic_path, partial_path, publish
from dmtg.secrets import without_secrets_in
from dmtg.suggestions import did_you_mean

ALL = "all"  # in place of the names of sources
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True)
class _Transfer:
    """A file of a data set, and its name in the mix."""

    folder: Folder
    file: StoredFile
    name: str


def mix_shards(
    sources: Sequence[str],
    out: Path,
    *,
    prefix: Sequence[str] = (),
    copy: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> Manifest:
    """Join folders of shards; each sample keeps its labels and has none of the other data sets.

    Files of the same file system become hard links, which take no space; others are copied and
    compared with their hashes. The manifest is written last.

    Args:
        sources: Folders or URLs, as `NAME=FOLDER` to name one; a mix keeps its sources apart.
        out: Folder of the mix; empty, absent or left by an interrupted call of the same arguments.
        prefix: Names of the folders whose labels get the name as prefix; `all` for every one.
        copy: Whether to copy files that could be links.
        workers: Number of processes that copy.
        progress: Whether to show a progress bar.

    Raises:
        DataError: A data set cannot be read, fields or names clash, or `out` holds other files.
    """
    parts = _parts(sources, prefix)
    check_sources(parts)
    transfers = _transfers(parts)
    planned = joined_manifest(parts)
    arguments = {"sources": tuple(without_secrets_in(list(sources))), "prefix": tuple(prefix)}
    planned = planned.model_copy(
        update={"conversion": joined_conversion(parts, planned, arguments)}
    )
    if (out / MANIFEST_NAME).exists():
        return _finished(out, planned)
    for part in parts:
        for split in part.manifest.splits.values():
            check_shards(part.folder, split)
    _check_free(out)
    work = out / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    with locked(work):
        _check_begun(work, planned)
        remove_partial_shards(out)
        sizes = LocalFolder(out).sizes()
        todo = [t for t in transfers if sizes.get(t.name) != t.file.bytes]
        place = partial(_place, out, copy)
        bar = progress_bar(sum(t.file.bytes for t in todo), progress, "B")
        bar.unit_scale = True
        with bar, mapped(place, todo, workers, bar.update) as placed:
            for _ in placed:
                pass
        planned.save(out)
    shutil.rmtree(work)
    return planned


def _parts(sources: Sequence[str], prefix: Sequence[str]) -> list[Part]:
    """Read the manifests of all data sets."""
    if len(sources) < 2:
        raise DataError(f"found {len(sources)} data set; a mix joins two or more")
    found = []
    for text in sources:
        name, location = _named(text)
        folder = open_folder(location)
        manifest = Manifest.load(folder)
        found.append((name or default_name(manifest), name is not None, folder, manifest))
    names = [name for name, *_ in found]
    unknown = [name for name in prefix if name not in (*names, ALL)]
    if unknown:
        raise DataError(
            f"--prefix: found {unknown[0]!r}; allowed: {ALL}, or of {', '.join(names)}"
            f"{did_you_mean(unknown[0], names)}"
        )
    return [
        Part(name, named, name in prefix or ALL in prefix, folder, manifest)
        for name, named, folder, manifest in found
    ]


def _named(text: str) -> tuple[str | None, str]:
    """Return name and location; `./a=b` is a folder without a name."""
    name, separator, location = text.partition("=")
    if not separator or not re.fullmatch(r"[^/:\\]*", name):
        return None, text
    if not re.fullmatch(SOURCE_NAME, name) or name == ALL or not location:
        raise DataError(
            f"{text!r}: NAME=FOLDER needs a folder and a name of 1 to 50 of A-Z a-z 0-9 _ . -, of "
            f"which the first is none of . -, other than {ALL!r}"
        )
    return name, location


def _finished(out: Path, planned: Manifest) -> Manifest:
    """Return the manifest that an earlier call of the same arguments wrote."""
    manifest = Manifest.load(out)
    if manifest.digest() != planned.digest():
        raise DataError(
            f"{out / MANIFEST_NAME}: a data set is already here, of other sources or arguments; "
            "name another folder"
        )
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return manifest


def _check_free(out: Path) -> None:
    """Check that a folder holds nothing but what an interrupted call has left."""
    if not out.exists() or (out / WORK_FOLDER / MANIFEST_NAME).exists():
        return
    if not out.is_dir():
        raise DataError(f"{out}: is no folder")
    others = sorted(
        path.name
        for path in out.iterdir()
        if path.name != WORK_FOLDER and not path.name.startswith(PARTIAL_PREFIX)
    )
    if others:
        raise DataError(f"{out}: holds {others[0]}; name an empty or a new folder")


def _check_begun(work: Path, planned: Manifest) -> None:
    """Compare the mix with the one that was begun, which is recorded in the work folder."""
    if not (work / MANIFEST_NAME).exists():
        planned.save(work)
    elif Manifest.load(work).digest() != planned.digest():
        raise DataError(
            f"{work}: begun with other sources or arguments; use those of the first call, or "
            "remove the folder"
        )


def _transfers(parts: Sequence[Part]) -> list[_Transfer]:
    """Return the files of all parts, each once, an index before its shard.

    Raises:
        DataError: Two files would have one name.
    """
    transfers: dict[str, _Transfer] = {}
    for part in parts:
        for split in part.manifest.splits.values():
            for shard in split.shards:
                name = part.shard(shard).name
                files = [(name, StoredFile(shard.name, shard.bytes, shard.sha256))]
                if shard.index is not None:
                    index = shard.index
                    stored = StoredFile(index_name(shard.name), index.bytes, index.sha256)
                    files.insert(0, (index_name(name), stored))
                for target, file in files:
                    transfer = _Transfer(part.folder, file, target)
                    if transfers.setdefault(target, transfer) != transfer:
                        raise DataError(
                            f"{part.folder.where(file.name)}: would be {target}, and so would "
                            f"{transfers[target].folder.where(transfers[target].file.name)}; give "
                            "one of the sources another name, as in NAME=FOLDER"
                        )
    return list(transfers.values())


def _place(out: Path, copy: bool, transfer: _Transfer) -> None:
    """Write one file of the mix; it gets its name when it is complete."""
    target = out / transfer.name
    if isinstance(transfer.folder, LocalFolder) and not copy:
        try:
            if _link(transfer.folder.root / transfer.file.name, target):
                add_progress(transfer.file.bytes)
                return
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
    _copy(transfer, target)


def _link(source: Path, target: Path) -> bool:
    """Make a hard link; return whether it was made.

    A symbolic link may lead out of the folder: what it names is copied, and compared with its hash.
    """
    if source.is_symlink():
        return False
    partial_link = partial_path(target)
    os.link(source, partial_link)
    publish(partial_link, target)
    return True


def _copy(transfer: _Transfer, target: Path) -> None:
    """Copy a file and compare it with its hash.

    Raises:
        DamageError: The copy has another hash.
    """
    file, digest = transfer.file, hashlib.sha256()
    source = transfer.folder.open(file)
    try:
        with atomic_path(target) as path, open(path, "wb") as copied:
            for start in range(0, file.bytes, COPY_BYTES):
                data = source.read(start, min(COPY_BYTES, file.bytes - start))
                digest.update(data)
                copied.write(data)
                add_progress(len(data))
            if digest.hexdigest() != file.sha256:
                raise DamageError(
                    f"{source.label}: damaged: sha256 {digest.hexdigest()}, manifest says "
                    f"{file.sha256}"
                )
    finally:
        source.close()
