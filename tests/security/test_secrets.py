"""The credentials of a URL are used, and neither written nor shown anywhere."""

import base64
import json
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from data_pipelines.convert.jobs import ConversionJobs
from trainer.config.loading import load_config
from trainer.run_folder import RunFolder

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[2]
SECRET = "Xk7fQ2pW9z"
SIGNED = f"https://me:{SECRET}@host.invalid/train-{{0..9}}.tar?sig={SECRET}"


class _Handler(BaseHTTPRequestHandler):
    """Gives ranges of files to who knows the password; else 401."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        expected = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
        path = self.server.root / self.path.lstrip("/").partition("?")[0]
        if self.headers.get("Authorization") != expected:
            self.send_error(401)
            return
        if not path.is_file():
            self.send_error(404)
            return
        if path.suffix == ".tar" and self.server.broken:
            self.send_error(503)
            return
        data = path.read_bytes()
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(len(data), int(last or len(data) - 1) + 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(data)}")
            data = data[int(first) : end]
        else:
            self.send_response(200)
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *_arguments):
        pass


@pytest.fixture(scope="module")
def server(rooms):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.root, server.broken = rooms, False
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def url(server):
    """A URL whose password the server wants."""
    return f"http://me:{SECRET}@127.0.0.1:{server.server_port}"


def check_clean(*ends, folder=None):
    for end in ends:
        assert SECRET not in end.stdout and SECRET not in end.stderr
    for path in folder.rglob("*") if folder else ():
        assert SECRET not in path.name
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.fixture(scope="module")
def run(url, rooms_yaml, session_launcher, tmp_path_factory):
    """A run on remote data with everything that a run writes, and how it ended."""
    out = tmp_path_factory.mktemp("secrets") / "run"
    end = session_launcher.train(
        rooms_yaml, f"run.out={out}", "run.steps=3", f"data.shards={url}", "data.workers=1",
        "log.trackers=[tensorboard]", "eval.every=2",
    ).finish()  # fmt: skip
    assert end.code == 0, end.stderr[-4000:]
    return out, end


def test_everything_that_a_run_writes(run, server):
    out, end = run
    check_clean(end, folder=out)
    assert RunFolder(out).load_config().data.shards == f"http://127.0.0.1:{server.server_port}"
    names = {path.name for path in out.rglob("*")}
    assert {"config.yaml", "status.json", "rank-0.log", "progress.json", "tensorboard"} <= names


def test_a_run_continues_with_credentials_that_are_given_again(run, url, rooms_yaml, launcher):
    out, _ = run
    end = launcher.train(
        rooms_yaml, f"run.out={out}", "run.steps=3", f"data.shards={url}", "run.resume=auto",
        "log.trackers=[tensorboard]", "eval.every=2",
    ).finish()  # fmt: skip
    assert end.code == 0 and "is complete (3 steps)" in end.stderr, end.stderr[-4000:]
    check_clean(end, folder=out)


def test_an_export_names_the_credentials_that_a_run_does_not_store(run, url, launcher, tmp_path):
    out, _ = run
    config = out / "config.yaml"
    saved = config.read_text()
    config.write_text(saved.replace("retry_seconds: 120.0", "retry_seconds: 0.0"))
    model = str(tmp_path / "model.safetensors")
    try:
        refused = launcher.dmtg("export", str(out), "--out", model)
    finally:
        config.write_text(saved)
    assert refused.code == 2 and "error: http://127.0.0.1:" in refused.stderr
    assert "does not store the credentials of its URLs" in refused.stderr
    assert "name them with --shards" in refused.stderr and not Path(model).exists()
    end = launcher.dmtg("export", str(out), "--out", model, "--shards", url, "--json")
    assert end.code == 0, end.stderr
    score = launcher.dmtg("eval", model, "--shards", url, "--json")
    assert score.code == 0, score.stderr
    check_clean(refused, end, score)
    content = Path(model).read_bytes()
    assert not [text for text in (SECRET, "http://", str(out.parent)) if text.encode() in content]


def test_errors_and_warnings(server, url, rooms_yaml, launcher, tmp_path):
    """A missing folder, and a source that does not answer, as the loader's worker tells it."""
    out = f"run.out={tmp_path / 'run'}"
    missing = launcher.train(rooms_yaml, out, f"data.shards={url}/nowhere?sig={SECRET}").finish()
    assert missing.code == 2 and "/nowhere" in missing.stderr and "missing" in missing.stderr
    server.broken = True
    try:
        options = (f"data.shards={url}", "data.workers=1", "data.retry_seconds=2")
        gone = launcher.train(rooms_yaml, out, *options).finish()
    finally:
        server.broken = False
    assert gone.code == 2 and "trying again in" in gone.stderr
    errors = [line for line in gone.stderr.splitlines() if not line.startswith("20")]
    assert len(errors) == 1 and re.match(
        r"error: http://127\.0\.0\.1:\d+/.*\.tar: failed", errors[0]
    )
    check_clean(missing, gone, folder=tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--print-config", f"data.tar_urls='{SIGNED}'"),
        (f"data.tar_urls=['{SIGNED}']",),
        (f"run.steps='{SIGNED}'",),
        (f"tasks.define='{SIGNED}'",),
        (f"model.encoder.pretrained='{SIGNED}'", "--print-config"),
        (f"run.x={SIGNED}",),
        (f"{SIGNED}",),
        (f"data.cache_dir='{SIGNED}'", "--print-config"),
        (f"optim.lr=[{SIGNED}",),
    ],
)
def test_configurations_that_are_shown_or_refused(arguments, rooms_yaml, tmp_path):
    command = [sys.executable, str(ROOT / "trainer" / "main.py"), "--config", str(rooms_yaml)]
    end = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert end.returncode == (0 if "--print-config" in arguments else 2), end
    check_clean(end)
    assert end.stdout + end.stderr != ""


def test_a_job_script_does_not_hold_them(rooms_yaml, launcher, tmp_path):
    arguments = (str(rooms_yaml), f"run.out={tmp_path / 'run'}", f"data.tar_urls={SIGNED}")
    for more in ((), ("--compare", str(tmp_path / "compare"))):
        end = launcher.dmtg("slurm", *arguments[: 1 if more else 2], arguments[2], *more)
        assert end.code == 2 and "give it in the YAML file" in end.stderr
        check_clean(end, folder=tmp_path)


def test_a_comparison_does_not_hold_them(url, rooms_yaml, launcher, tmp_path):
    arguments = (str(rooms_yaml), "--out", str(tmp_path / "compare"), "--recipes", "multitask")
    end = launcher.dmtg(
        "compare", *arguments, "--seeds", "1", f"data.shards={url}", "run.steps=2", "--json"
    )
    assert end.code == 0, end.stderr[-4000:]
    check_clean(end, folder=tmp_path / "compare")


def test_a_manifest_does_not_hold_them():
    def jobs(key):
        dataset = f"https://me:{key}@host/data.parquet?sig={key}"
        return ConversionJobs("huggingface", {"dataset": dataset, "tasks": ("a",)}, {"t": ["0"]}, 1)

    assert jobs(SECRET).arguments == {"dataset": "https://host/data.parquet", "tasks": ("a",)}
    assert jobs(SECRET).digest() == jobs("another").digest(), "a rerun continues"


def test_the_configuration_in_memory_keeps_them(rooms_yaml):
    config = load_config(rooms_yaml, [f"data.tar_urls={SIGNED}"])
    assert config.data.tar_urls == SIGNED
    assert SECRET not in config.to_yaml() and SECRET not in json.dumps(config.without_secrets())
