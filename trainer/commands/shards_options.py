"""Options that several of the commands `dmtg shards` have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OutDir = Annotated[
    Path, typer.Option("--out", help="Folder to write; a rerun continues where it stopped.")
]
Root = Annotated[Path, typer.Option("--root", help="Folder of the data set as released.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed writes the same bytes.")]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes.")]
Portable = Annotated[
    bool, typer.Option("--portable", help="Store PNG, for other readers of WebDataset shards.")
]
Size = Annotated[
    int | None, typer.Option(min=1, help="Pixels of the shorter side; larger pictures shrink.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Samples of each split at most.")]
Tasks = Annotated[str | None, typer.Option(help="Labels to convert, separated by commas.")]
PerShard = Annotated[int, typer.Option(min=1, help="Samples of a shard.")]
MapFile = Annotated[Path, typer.Option("--map", help="YAML file that describes the fields.")]
ValShare = Annotated[
    float | None,
    typer.Option(min=0, help="Share of the samples of train that become the split val."),
]
GroupBy = Annotated[
    str | None,
    typer.Option(help="Column, as of persons: rows with one value stay in one split."),
]


def split_names(text: str | None) -> tuple[str, ...] | None:
    """Return the names in a text that separates them by commas."""
    return None if text is None else tuple(filter(None, (name.strip() for name in text.split(","))))
