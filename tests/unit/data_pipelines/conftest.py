"""A small folder of shards whose values are functions of the sample number."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

import numpy as np
import pytest

from data_pipelines.decode.codecs import encode_json, encode_png
from data_pipelines.reading.fields import LabelRequest
from data_pipelines.shards import remote
from data_pipelines.shards.manifest import Field, Manifest, Split
from data_pipelines.shards.writer import ShardWriter

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


class FileServer(ThreadingHTTPServer):
    """Serve a folder with ranges of bytes, and fail on demand.

    `refuse` and `cut` are how many answers from now on are an error or break off half-way.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _FileHandler)
        self.root = root
        self.refuse = self.cut = 0
        self.ranges = True
        self.asked: list[str] = []
        self.lock = Lock()
        Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def take(self, knob: str) -> bool:
        with self.lock:
            left = getattr(self, knob)
            setattr(self, knob, max(0, left - 1))
            return left > 0


class _FileHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = self.server.root / self.path.lstrip("/")
        if self.server.take("refuse"):
            self.send_error(503)
        elif not path.is_file():
            self.send_error(404)
        else:
            self._send(path.read_bytes())

    do_HEAD = do_GET

    def _send(self, data: bytes) -> None:
        wanted, size, part = self.headers.get("Range"), len(data), data
        if wanted and self.server.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last) + 1 if last else size, size)
            part = data[int(first) : end]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
        else:
            self.send_response(200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.take("cut"):
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return
        self.wfile.write(part)

    def log_message(self, *_) -> None:
        """Do nothing: requests are not logged."""


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
