"""Repositories in the layout of the hub's cache, which are read with the hub offline."""

from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached_repository(cache: Path, name: str) -> Path:
    """Return the folder to which the files of a repository are written."""
    root = cache / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder
