"""Find photos: files, folders, patterns and lists of files; give each a name of its own."""

from __future__ import annotations

import glob
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.shards.manifest import MANIFEST_NAME
from trainer.errors import UserError

# Of the formats in `dmtg.pictures.FORMATS`; other files of a folder are left out.
SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif",
        ".ppm", ".pgm", ".pbm", ".pnm",
    }
)  # fmt: skip
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class PhotoFile:
    """A photo.

    Attributes:
        path: As it was given or found.
        relative: The parts of its path in the folder that was given, or its name.
    """

    path: Path
    relative: tuple[str, ...]


def find_photos(inputs: Iterable[str], lists: Iterable[str], out: Path) -> list[PhotoFile]:
    """Return the photos of all inputs, each once.

    Args:
        inputs: Files, folders (searched with all folders in them), and patterns such as
            `photos/**/*.jpg`.
        lists: Text files with an input in each line; `-` is the standard input.
        out: Folder of the outputs; what is in it is no input.

    Raises:
        UserError: An input does not exist, a folder or a pattern has no photo, or there is none.
    """
    given = [*inputs, *(line for path in lists for line in _lines(path))]
    if not given:
        raise UserError("IMAGES: none given; name files, folders, patterns, --list or --shards")
    found: dict[str, PhotoFile] = {}
    for text in given:
        for photo in _expanded(text, Path(os.path.abspath(out))):
            found.setdefault(os.path.abspath(photo.path), photo)
    return list(found.values())


def names_of(photos: Sequence[PhotoFile]) -> list[str]:
    """Return the names of the outputs, without suffix, with `/` between folder and file.

    It is the path in the folder that was given, or the file's name. Where two are equal, also for a
    file system that ignores case, they get their suffixes, or as many of their folders as it takes.
    """
    absolute = [os.path.abspath(photo.path) for photo in photos]
    # Of files that differ by case alone, the file system tells them apart.
    fold = str.casefold if len({*map(str.casefold, absolute)}) == len(photos) else str
    depth = [0] * len(photos)
    while True:
        names = [_name(photo, level) for photo, level in zip(photos, depth, strict=True)]
        of_name = defaultdict(list)
        for index, name in enumerate(names):
            of_name[fold(name)].append(index)
        equal = [index for group in of_name.values() if len(group) > 1 for index in group]
        if not equal:
            return names
        for index in equal:
            depth[index] += 1


def _name(photo: PhotoFile, depth: int) -> str:
    """Return a name of a photo: the longer, the larger `depth` is."""
    more_folders, with_suffix = divmod(depth, 2)
    parts = photo.relative
    if more_folders:
        parts = Path(os.path.abspath(photo.path)).parts[1:][-(len(parts) + more_folders) :]
    *folders, name = parts
    return "/".join([*folders, name if with_suffix else Path(name).stem])


def _expanded(text: str, out: Path) -> Iterator[PhotoFile]:
    path = Path(text)
    if path.is_dir():
        yield from _in_folder(path, out)
    elif os.path.lexists(path):
        yield PhotoFile(path, (path.name,))
    elif glob.has_magic(text):
        matches = sorted(glob.glob(text, recursive=True))
        photos = [photo for match in matches for photo in _matched(Path(match), out)]
        if not photos:
            raise UserError(f"{text}: no photo has a path of this pattern")
        yield from photos
    else:
        raise UserError(f"{text}: no such file or folder")


def _matched(path: Path, out: Path) -> Iterator[PhotoFile]:
    """Yield what a pattern matches: photos only, as in a folder."""
    if path.suffix.lower() in SUFFIXES and not _is_below(path, out):
        yield PhotoFile(path, (path.name,))


def _in_folder(folder: Path, out: Path) -> Iterator[PhotoFile]:
    """Yield the photos below a folder in the order of their paths, without hidden files."""
    photos = []
    for place, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not _is_below(Path(place, name), out)
        ]
        photos += [
            Path(place, name)
            for name in files
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    if not photos:
        shards = " (a folder of shards: name it with --shards)"
        hint = shards if (folder / MANIFEST_NAME).is_file() else ""
        raise UserError(f"{folder}: no photos in this folder{hint}")
    for path in sorted(photos):
        yield PhotoFile(path, path.relative_to(folder).parts)


def _is_below(path: Path, out: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(out)


def _lines(path: str) -> list[str]:
    try:
        if path == STANDARD_INPUT:
            text = sys.stdin.read()
        else:
            text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text in UTF-8"
        raise UserError(f"--list {path}: cannot be read: {reason}") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"--list {path}: is empty")
    return lines
