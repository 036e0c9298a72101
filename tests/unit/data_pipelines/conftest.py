"""A small folder of shards whose values are functions of the sample number."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.decode.codecs import encode_json, encode_png
from data_pipelines.reading.fields import LabelRequest
from data_pipelines.shards import remote
from data_pipelines.shards.manifest import Field, Manifest, Split
from data_pipelines.shards.writer import ShardWriter
from tests.servers import FileServer

HEIGHT, WIDTH = 8, 12
FIELDS = {
    "rgb": Field(member="rgb.png", kind="image", channels=3),
    "depth": Field(member="depth.png", kind="dense_regression"),
    "normal": Field(member="normal.png", kind="dense_regression", channels=3, on_flip="negate_x"),
    "parity": Field(member="attributes.json", key="parity", kind="binary"),
    "third": Field(
        member="attributes.json", key="third", kind="multiclass", classes=("a", "b", "c")
    ),
    "number": Field(member="attributes.json", key="number", kind="regression", mean=1.0, std=2.0),
    "side": Field(member="attributes.json", key="side", kind="binary", on_flip="forbid"),
    "unlabelled": Field(member="attributes.json", key="nothing", kind="binary"),
}
REQUESTS = (
    LabelRequest("t_number", "number"),
    LabelRequest("t_normal", "normal", 3),
    LabelRequest("t_third", "third"),
    LabelRequest("t_depth", "depth"),
    LabelRequest("t_parity", "parity"),
)


def _members_of(number: int) -> dict[str, bytes]:
    """Every fourth sample has no depth, every fifth no `third`."""
    rng = np.random.default_rng(number)
    attributes = {"parity": number % 2, "third": number % 3, "number": number / 4, "side": 1}
    if number % 5 == 4:
        del attributes["third"]
    members = {
        "rgb.png": encode_png(rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)),
        "normal.png": encode_png(rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)),
        "depth.png": encode_png(np.full((HEIGHT, WIDTH), 300 + number, np.uint16)),
        "attributes.json": encode_json(attributes),
    }
    if number % 4 == 3:
        del members["depth.png"]
    return members


def _write_split(root: Path, split: str, samples: int, samples_per_shard: int = 10) -> Split:
    with ShardWriter(root, split, samples_per_shard) as writer:
        for number in range(samples):
            writer.write(f"{split}{number}", _members_of(number))
    labelled = dict.fromkeys(FIELDS, samples) | {"unlabelled": 0}
    labelled["depth"] = sum(n % 4 != 3 for n in range(samples))
    labelled["third"] = sum(n % 5 != 4 for n in range(samples))
    return writer.split(labelled)


@dataclass(frozen=True)
class Shards:
    root: Path
    manifest: Manifest
    requests: tuple[LabelRequest, ...] = REQUESTS


@pytest.fixture(autouse=True)
def no_kept_indexes(monkeypatch, tmp_path_factory) -> None:
    """Keep the indexes that a test builds from the others."""
    monkeypatch.setenv("DMTG_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Shards:
    """37 train samples in 4 shards and 11 val samples in 2; not to be modified."""
    root = tmp_path_factory.mktemp("shards")
    splits = {"train": _write_split(root, "train", 37), "val": _write_split(root, "val", 11)}
    manifest = Manifest(dataset="toy", fields=FIELDS, splits=splits)
    manifest.save(root)
    return Shards(root, manifest)


@pytest.fixture
def members_of() -> Callable[[int], dict[str, bytes]]:
    return _members_of


@pytest.fixture
def write_split() -> Callable[..., Split]:
    return _write_split


@pytest.fixture
def served(shards) -> Iterator[FileServer]:
    """The small shards behind a real HTTP server."""
    pytest.importorskip("aiohttp", reason="fsspec speaks HTTP through aiohttp")
    with FileServer(shards.root) as server:
        yield server
        server.shutdown()


@pytest.fixture
def patient(monkeypatch) -> None:
    """Make the waits between attempts short."""
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
