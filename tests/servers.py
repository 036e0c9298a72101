"""HTTP servers of this machine for tests: one that serves a folder and fails on demand."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread


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
        path = self.server.root / self.path.partition("?")[0].lstrip("/")
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


class HostileServer(ThreadingHTTPServer):
    """Answer every request with chosen headers and a body that may not end.

    Attributes:
        status: Status of the answers.
        answer_headers: Headers of the answers.
        block: What the body repeats.
        repeats: How often; None repeats it until the client hangs up.
        sent: Bytes of bodies that were sent.
        requests: Headers of the requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HostileHandler)
        self.status = 200
        self.answer_headers: dict[str, str] = {}
        self.block = bytes(2**16)
        self.repeats: int | None = None
        self.sent = 0
        self.requests: list[dict[str, str]] = []
        Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _HostileHandler(BaseHTTPRequestHandler):
    server: HostileServer

    def do_GET(self) -> None:
        self.server.requests.append(dict(self.headers))
        self.send_response(self.server.status)
        for name, value in self.server.answer_headers.items():
            self.send_header(name, value)
        self.end_headers()
        blocks = 0
        try:
            while self.command == "GET" and blocks != self.server.repeats:
                self.wfile.write(self.server.block)
                self.server.sent += len(self.server.block)
                blocks += 1
        except OSError:
            pass  # the client has hung up

    do_HEAD = do_GET

    def log_message(self, *_) -> None:
        """Do nothing: requests are not logged."""
