"""Copy images out of shards to files, to look at or to predict."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from data_pipelines.decode.codecs import PICTURES, decode
from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Manifest
from data_pipelines.shards.sources import Location
from data_pipelines.shards.store import ShardStore
from dmtg.files import atomic_write, check_outputs
from dmtg.names import one_line, to_file_name


def extract_images(
    root: Location, out: Path, *, split: str, limit: int, overwrite: bool = False
) -> list[Path]:
    """Write the input images of a split's first samples to files, as they are stored.

    A file has the name of its sample's key, in which other characters than those of
    `dmtg.names.FILE_NAME_RULE`, such as `/`, become `_`, so that every file is in `out`. Two keys
    with the same name are an error. An image is decoded before it is written.

    Args:
        root: Folder of the shards.
        out: Folder for the files.
        split: Name of the split.
        limit: Number of samples.
        overwrite: Whether files that exist may be replaced.

    Returns:
        The paths of the files.

    Raises:
        DataError: The shards cannot be used, their images are not PNG or JPEG, two keys give the
            same name, or a file exists already.
    """
    manifest = Manifest.load(root)
    shards = manifest.split(split)
    store = ShardStore(root, shards.shards)
    samples = range(min(limit, shards.num_samples))
    keys = [store.read(sample, ())[0] for sample in samples]
    members = [manifest.image_member(store.shard(sample).source) for sample in samples]
    paths = [
        out / f"{to_file_name(key)}.{_suffix(manifest, member)}"
        for key, member in zip(keys, members, strict=True)
    ]
    _check_outputs(zip(paths, (f"sample {one_line(key)}" for key in keys), strict=True), overwrite)
    out.mkdir(parents=True, exist_ok=True)
    for sample, member, path in zip(samples, members, paths, strict=True):
        key, contents = store.read(sample, [member])
        place = f"{store.where(sample)}: sample {one_line(key)}"
        if member not in contents:
            raise DataError(f"{place}: no member {member}, every sample needs its image")
        try:
            decode(member, contents[member])
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        with atomic_write(path, "wb", sync=False) as file:
            file.write(contents[member])
    return paths


def _suffix(manifest: Manifest, member: str) -> str:
    suffix = member.rpartition(".")[2]
    if suffix not in PICTURES:
        raise DataError(
            f"fields.{manifest.image}.member: found {member!r}; images are copied to files from "
            f"{', '.join(sorted(PICTURES))}"
        )
    return suffix


def _check_outputs(outputs: Iterable[tuple[Path, str]], overwrite: bool) -> None:
    try:
        check_outputs(outputs, overwrite=overwrite)
    except ValueError as error:
        raise DataError(str(error)) from error
