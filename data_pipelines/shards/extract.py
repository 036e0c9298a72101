"""Copy images out of shards to files, to look at or to predict."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.shards.manifest import Manifest
from data_pipelines.shards.sources import Location
from data_pipelines.shards.store import ShardStore
from dmtg.files import atomic_write


def extract_images(root: Location, out: Path, *, split: str, limit: int) -> list[Path]:
    """Write the input images of a split's first samples to files, as they are stored.

    Args:
        root: Folder of the shards.
        out: Folder for the files, which are named after the samples' keys.
        split: Name of the split.
        limit: Number of samples.

    Returns:
        The paths of the files.

    Raises:
        DataError: The shards cannot be used.
    """
    manifest = Manifest.load(root)
    shards = manifest.split(split)
    member = manifest.fields[manifest.image].member
    store = ShardStore(root, shards.shards)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for sample in range(min(limit, shards.num_samples)):
        key, members = store.read(sample, [member])
        path = out / f"{key}.{member.rpartition('.')[2]}"
        with atomic_write(path, "wb", sync=False) as file:
            file.write(members[member])
        paths.append(path)
    return paths
