"""Read the embedded file of drawings."""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError

FILE = Path(__file__).with_name("material_design_icons.json.xz")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Icon:
    """One drawing.

    Attributes:
        name: Words joined by `-`, such as `account-plus-outline`.
        aliases: Other names.
        tags: Subjects, such as `Account / User`.
        split: The split that it belongs to.
        outline: SVG path data in a square of 24 units.
    """

    name: str
    aliases: tuple[str, ...]
    tags: tuple[str, ...]
    split: str
    outline: str


def load_icons(path: Path = FILE) -> list[Icon]:
    """Return the drawings in the order of their names.

    Raises:
        DataError: The file is absent or damaged.
    """
    try:
        content = json.loads(lzma.decompress(path.read_bytes()))
    except (OSError, lzma.LZMAError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); install dmtg again") from error
    columns = (content[name] for name in ("names", "aliases", "tags", "splits", "outlines"))
    return [
        Icon(name, tuple(aliases), tuple(tags), split, outline)
        for name, aliases, tags, split, outline in zip(*columns, strict=True)
    ]


def save_icons(icons: list[Icon], source: dict[str, str], path: Path = FILE) -> None:
    """Write the file that `load_icons` reads, with what it was made from."""
    content: dict[str, Any] = {
        **source,
        "names": [icon.name for icon in icons],
        "aliases": [icon.aliases for icon in icons],
        "tags": [icon.tags for icon in icons],
        "splits": [icon.split for icon in icons],
        "outlines": [icon.outline for icon in icons],
    }
    text = json.dumps(content, separators=(",", ":"))
    preset = 9 | lzma.PRESET_EXTREME
    path.write_bytes(lzma.compress(text.encode(), check=lzma.CHECK_SHA256, preset=preset))
