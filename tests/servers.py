"""HTTP servers of this machine for tests: of a folder, one that is hostile, and a hub of models."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any


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


class HubServer(ThreadingHTTPServer):
    """A hub with the part of Hugging Face's API that uploads and downloads of a repository use.

    Attributes:
        token: What a client must send to write.
        repos: By name, whether it is private, and the files of its branches.
        commits: Message and branch of every commit.
        asked: Method and path of the requests.
    """

    daemon_threads = True

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.token = token
        self.repos: dict[str, dict[str, Any]] = {}
        self.commits: list[tuple[str, str]] = []
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_POST(self) -> None:
        body, path = self._body(), self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._answer(401, {"error": "Invalid credentials"})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/lfs/verify":
            asked = json.loads(body)
            same = len(self.server.objects[asked["oid"]]) == asked["size"]
            self._answer(200 if same else 422, {})
        elif re.fullmatch(r"/(.+/.+)\.git/info/lfs/objects/batch", path):
            self._answer(200, {"transfer": "basic", "objects": self._uploads(json.loads(body))})
        elif found := re.fullmatch(r"/api/models/(.+/.+)/(preupload|commit|branch)/(.+)", path):
            self._change(*found.groups(), body)
        else:
            self._answer(404, {"error": path})

    def do_PUT(self) -> None:
        data, oid = self._body(), self.path.rpartition("/")[2]
        if hashlib.sha256(data).hexdigest() == oid:
            self.server.objects[oid] = data
            self._answer(200, {})
        else:
            self._answer(422, {"error": "sha256"})

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path))
        found = re.fullmatch(r"/(.+/.+)/resolve/(.+?)/(.+)", self.path)
        repo = self.server.repos.get(found[1]) if found else None
        data = repo["branches"].get(found[2], {}).get(found[3]) if found and repo else None
        if data is None:
            self._answer(404, {"error": "not found"})
            return
        etag = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": "0" * 40}
        self._answer(200, data, headers)

    do_HEAD = do_GET

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        known = name in self.server.repos
        if not known:
            private = asked.get("visibility") == "private"
            self.server.repos[name] = {"private": private, "branches": {"main": {}}}
        self._answer(409 if known else 200, {"url": f"{self.server.url}/{name}"})

    def _uploads(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        def actions(oid: str) -> dict[str, Any]:
            return {
                "upload": {"href": f"{self.server.url}/lfs/{oid}"},
                "verify": {"href": f"{self.server.url}/lfs/verify"},
            }

        return [{**each, "actions": actions(each["oid"])} for each in asked["objects"]]

    def _change(self, repo: str, what: str, branch: str, body: bytes) -> None:
        branches = self.server.repos[repo]["branches"]
        if what == "branch":
            branches.setdefault(branch, {})
            self._answer(200, {})
        elif what == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "regular" if file["path"].endswith(".md") else "lfs",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        else:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    self.server.commits.append((value["summary"], branch))
                elif line["key"] == "lfsFile":
                    branches[branch][value["path"]] = self.server.objects[value["oid"]]
                else:
                    branches[branch][value["path"]] = base64.b64decode(value["content"])
            url = f"{self.server.url}/{repo}/commit/{'0' * 40}"
            self._answer(200, {"commitUrl": url, "commitOid": "0" * 40})

    def _body(self) -> bytes:
        self.server.asked.append((self.command, self.path))
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_) -> None:
        """Do nothing: requests are not logged."""
