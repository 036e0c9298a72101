"""An HTTP server that fails in a chosen way; for `benchmarks/faults.py`."""

from __future__ import annotations

import functools
import gzip
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

_HANGS = 60.0  # seconds
_BLOCK = bytes(2**16)


class Server(ThreadingHTTPServer):
    """Serve a folder with ranges of bytes; some files are served in a broken way.

    Args:
        root: The folder.
        fault: One of `FAULTS`.
        suffix: End of the names of the files that are served so.
    """

    daemon_threads = True

    def __init__(self, root: Path, fault: str, suffix: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.fault, self.suffix = root, FAULTS[fault], suffix
        self.url = f"http://127.0.0.1:{self.server_port}"
        Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __exit__(self, *arguments: object) -> None:
        self.shutdown()
        super().__exit__(*arguments)  # type: ignore[no-untyped-call]

    def handle_error(self, *_: object) -> None:
        """Do nothing: a client that closes the connection is expected."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        path = self.server.root / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data, wanted = path.read_bytes(), self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            data = data[int(first) : int(last) + 1 if last else None]
        if path.name.endswith(self.server.suffix):
            self.server.fault(self, path, data)
        else:
            self.answer(data, 206 if wanted else 200)

    do_HEAD = do_GET

    def answer(self, data: bytes, status: int = 206, **headers: str) -> None:
        """Send a complete answer; an underscore in a header's name stands for a hyphen."""
        self.send_response(status)
        named = {"Content-Length": str(len(data)), "Accept-Ranges": "bytes"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in named.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Do nothing: requests are not logged."""


def _refuses(handler: _Handler, _: Path, __: bytes) -> None:
    handler.send_error(503)


def _misses(handler: _Handler, _: Path, __: bytes) -> None:
    handler.send_error(404)


def _forbids(handler: _Handler, _: Path, __: bytes) -> None:
    handler.send_error(403)


def _cuts(handler: _Handler, _: Path, data: bytes) -> None:
    handler.answer(data[: len(data) // 2], Content_Length=str(len(data)))
    handler.close_connection = True


def _hangs(*_: object) -> None:
    time.sleep(_HANGS)


def _never_ends(handler: _Handler, _: Path, data: bytes) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    while True:
        handler.wfile.write(data or _BLOCK)


def _promises_more(handler: _Handler, _: Path, data: bytes) -> None:
    handler.answer(data, Content_Length=str(10**15))
    handler.close_connection = True


def _compresses(handler: _Handler, path: Path, _: bytes) -> None:
    handler.answer(gzip.compress(path.read_bytes()), 200, Content_Encoding="gzip")


@functools.cache
def _bomb() -> bytes:
    packer = zlib.compressobj(1, wbits=31)
    return b"".join([*(packer.compress(_BLOCK) for _ in range(2**14)), packer.flush()])


def _bombs(handler: _Handler, _: Path, __: bytes) -> None:
    handler.answer(_bomb(), 200, Content_Encoding="gzip")


def _ignores_ranges(handler: _Handler, path: Path, _: bytes) -> None:
    handler.answer(path.read_bytes(), 200)


def _changes(handler: _Handler, _: Path, data: bytes) -> None:
    handler.answer(bytes(byte ^ 1 for byte in data))


def _sends_less(handler: _Handler, _: Path, data: bytes) -> None:
    handler.answer(data[: len(data) // 2])


def _sends_nothing(handler: _Handler, _: Path, __: bytes) -> None:
    handler.answer(b"", 200)


def _asks_to_log_in(handler: _Handler, _: Path, __: bytes) -> None:
    handler.answer(b"<html><body>Please log in</body></html>", 200, Content_Type="text/html")


def _redirects(handler: _Handler, _: Path, __: bytes) -> None:
    handler.answer(b"", 302, Location=handler.path)


FAULTS: dict[str, Callable[..., None]] = {
    "answers 503": _refuses,
    "answers 404": _misses,
    "answers 403": _forbids,
    "breaks off": _cuts,
    "does not answer": _hangs,
    "never ends": _never_ends,
    "promises 1 PB": _promises_more,
    "compresses": _compresses,
    "sends 1 GB in gzip": _bombs,
    "ignores ranges": _ignores_ranges,
    "sends other bytes": _changes,
    "sends half": _sends_less,
    "sends nothing": _sends_nothing,
    "sends a login page": _asks_to_log_in,
    "redirects to itself": _redirects,
}
