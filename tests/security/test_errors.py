"""What a user can cause is one message and exit code 2; a fault of ours has its traceback."""

import errno
import http.client
import importlib
import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_pipelines.errors import DataError
from dmtg.plugins import LOSSES, load_plugins
from model.errors import BundleError
from trainer import errors
from trainer.errors import NonFiniteLossError, SaveError, UserError, explain, report_error

ROOT = Path(__file__).resolve().parents[2]
MAIN = "from trainer.commands.app import main; main()"
ESCAPES = "\x1b]0;owned\x07\x1b[2J"


def batch_norm_error():
    try:
        torch.nn.BatchNorm2d(3)(torch.zeros(1, 3, 1, 1))
    except ValueError as error:
        return error


def no_memory_error():
    try:
        torch.empty(2**60)
    except RuntimeError as error:
        return error


def deterministic_error():
    torch.use_deterministic_algorithms(True)
    try:
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
    except RuntimeError as error:
        return error
    finally:
        torch.use_deterministic_algorithms(False)


def worker_error(kind, message):
    return kind(f"Caught {kind.__name__} in DataLoader worker process 0.\nTraceback\n{message}\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("run.out: bad"), 2, "run.out: bad"),
        (DataError("a.tar: bad"), 2, "a.tar: bad"),
        (BundleError("m.safetensors: bad"), 2, "m.safetensors: bad"),
        (SaveError("disk full"), 2, "disk full"),
        (OSError(errno.ENOSPC, "No space left on device", "/a"), 2, "/a: No space left on device"),
        (OSError(errno.EROFS, "Read-only file system"), 2, "Read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), 2, "/a: Permission denied"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 2, "standard output, or a"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 2, "Connection refused"),
        (http.client.RemoteDisconnected("no answer"), 2, "no answer"),
        (socket.gaierror(socket.EAI_NONAME, "Name not known"), 2, "Name not known"),
        (OSError(errno.EMFILE, "Too many open files"), 2, "Too many open files"),
        (worker_error(OSError, "OSError: [Errno 28] No space left"), 2, "OSError: [Errno 28] No"),
        (ModuleNotFoundError("No module named 's3fs'", name="s3fs"), 2, "No module named 's3fs'; "),
        (MemoryError(), 2, "out of memory at step 7: MemoryError"),
        (no_memory_error(), 2, "out of memory at step 7: "),
        (RuntimeError("not enough memory: you tried to allocate"), 2, "out of memory at step 7: "),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "out of memory at step 7: CUDA out of"),
        (batch_norm_error(), 2, "a batch of one sample at step 7 leaves batch normalisation one"),
        (deterministic_error(), 2, "run.deterministic: torch has no deterministic algorithm for"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 2, "a process"),
        (NonFiniteLossError("NaN in step 5"), 1, "NaN in step 5; the checkpoints in run.out"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_what_a_user_can_cause(error, code, message, capsys):
    explanation = explain(error, "step 7")
    assert (explanation.code, explanation.expected) == (code, True)
    assert explanation.message.startswith(message) and "\n" not in explanation.message
    assert report_error(error) == code
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and "Traceback" not in text


@pytest.mark.parametrize(
    "error",
    [
        KeyError("surprise"), ValueError("odd"), RuntimeError("size mismatch"), AssertionError(),
        TimeoutError(), OSError("no tape"), OSError(errno.EBADF, "Bad file descriptor"),
        worker_error(OSError, "OSError: no tape"),
        ModuleNotFoundError("No module named 'trainer.nothing'", name="trainer.nothing"),
    ],
)  # fmt: skip
def test_a_fault_of_ours(error, capsys):
    try:
        raise error
    except Exception as raised:
        assert report_error(raised) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text and "test_a_fault_of_ours" in text
    assert f"error: {type(error).__name__}" in text
    assert text.endswith(f"{errors.REQUEST} above\n")


PLUGIN = {
    "parts.py": """
from my_parts import other
from dmtg.plugins import register_loss

@register_loss("of_a_stranger")
class Mine:
    def fail(self):
        return {}["surprise"]

    def fail_in_a_library(self):
        import torch
        return torch.zeros(2) @ torch.zeros(3)

    def fail_in_dmtg(self):
        from dmtg.names import shortened
        return shortened(5)

    def fail_beside_it(self):
        return other.fail()
""",
    "other.py": "def fail():\n    raise TimeoutError",
    "__init__.py": "",
}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    folder = tmp_path / "my_parts"
    folder.mkdir()
    for name, text in PLUGIN.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))
    load_plugins(["my_parts.parts"])
    yield importlib.import_module("my_parts.parts").Mine()
    for name in [name for name in sys.modules if name.startswith("my_parts")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("way", "module", "line"),
    [
        ("fail", "parts", 8),
        ("fail_in_a_library", "parts", 12),
        ("fail_in_dmtg", "parts", 16),
        ("fail_beside_it", "other", 2),
    ],
)
def test_a_fault_of_a_plug_in(plugin, way, module, line, capsys):
    try:
        getattr(plugin, way)()
    except Exception as error:
        assert report_error(error) == 1
    text = capsys.readouterr().err
    file = sys.modules[f"my_parts.{module}"].__file__
    assert "Traceback" in text and errors.REQUEST not in text
    assert text.splitlines()[-1] == (
        f"this is a fault of the plug-in my_parts.{module} or of its use ({file}, line {line}), "
        "see the traceback above"
    )


@pytest.mark.usefixtures("plugin")
def test_a_fault_of_ours_is_not_that_of_an_imported_plug_in(capsys):
    try:
        raise KeyError("surprise")
    except KeyError as error:
        report_error(error)
    assert capsys.readouterr().err.endswith(f"{errors.REQUEST} above\n")


@pytest.mark.parametrize("kind", [UserError, DataError, KeyError, OSError, NonFiniteLossError])
def test_no_message_controls_the_terminal(kind, capsys):
    report_error(kind(f"task {ESCAPES} of https://me:secret@host/a?sig=secret"))
    text = capsys.readouterr().err
    assert "\x1b" not in text and "\x07" not in text and "secret" not in text
    assert "owned" in text


def dmtg(*arguments, stdout=subprocess.PIPE, cwd=None, env=None):
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        cwd=cwd, stdout=stdout, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **(env or {})},
    )  # fmt: skip


def one_message(end, message, code=2):
    assert end.returncode == code, end.stderr
    assert re.search(message, end.stderr), end.stderr
    assert end.stderr.startswith("error: ") and len(end.stderr.splitlines()) == 1, end.stderr


@pytest.fixture
def status_of(tmp_path):
    """A folder with a status of these values."""

    def write(**values):
        status = dict.fromkeys(("job", "checkpoint", "cause", "error")) | {
            "state": "failed", "host": "a", "pid": 1, "updated": "2026-01-01T00:00:00+00:00",
        }  # fmt: skip
        (tmp_path / "status.json").write_text(json.dumps(status | values))
        return tmp_path

    return write


def test_a_status_that_controls_the_terminal(status_of):
    end = dmtg("status", status_of(error=f"of {ESCAPES}", host=ESCAPES))
    assert end.returncode == 1 and "\\x1b[2J" in end.stdout and "\x1b" not in end.stdout


def test_a_status_that_is_none(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "running"}')
    one_message(dmtg("status", tmp_path), "is not the status of a run .host is missing.")


def test_standard_output_is_closed(status_of):
    reader, writer = os.pipe()
    os.close(reader)
    one_message(dmtg("status", status_of(), stdout=writer), "standard output was closed")
    os.close(writer)


def test_standard_output_is_closed_while_a_table_is_printed(rooms, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    end = dmtg("doctor", rooms, "--out", tmp_path / "a.png", "--samples", "4", stdout=writer)
    os.close(writer)
    one_message(end, "standard output was closed")


def test_standard_output_is_a_full_disk(status_of):
    with open("/dev/full", "w") as full:
        one_message(dmtg("status", status_of(), stdout=full), "No space left on device")


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    end = dmtg("shards", "digits", "--out", tmp_path / "file" / "shards")
    assert end.returncode == 2 and "Traceback" not in end.stderr
    assert re.fullmatch("error: .*file.*: Not a directory", end.stderr.splitlines()[-1])


def test_a_library_is_missing(tmp_path):
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'sklearn'\", name='sklearn')"
    )
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    end = dmtg("shards", "digits", "--out", tmp_path / "s", env={"PYTHONPATH": path})
    one_message(end, "No module named 'sklearn'; install the package that is missing")


def test_names_in_a_table_are_no_markup_and_no_escapes(rooms, tmp_path):
    copy = shutil.copytree(rooms, tmp_path / "shards")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["fields"]["camera_pitch"]["unit"] = f"[red]deg[/red] :smile: {ESCAPES}"
    manifest.pop("checksum", None)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    end = dmtg("doctor", copy, "--out", tmp_path / "sheet.png", "--samples", "8")
    assert "\x1b" not in end.stdout + end.stderr and "\x07" not in end.stdout + end.stderr
    assert "[red]deg[/red]" in end.stdout.replace("\n", "") or end.returncode == 2, end.stdout


def test_a_terminal_gets_colours_and_no_escapes_of_names(status_of):
    """On a terminal, too, where a table has escapes of its own."""
    parent, child = pty.openpty()
    dmtg("status", status_of(error=ESCAPES), stdout=child)
    os.close(child)
    assert b"\x1b[2J" not in os.read(parent, 100_000)
    os.close(parent)


@pytest.mark.distributed
def test_a_batch_of_one_on_a_small_map(launcher, rooms_yaml, tmp_path):
    options = "model_type: resnet, embedding_size: 8, hidden_sizes: [8, 8], depths: [1, 1]"
    encoder = f"{{name: backbone, options: {{{options}, layer_type: basic}}}}"
    end = launcher.train(
        rooms_yaml, f"run.out={tmp_path / 'run'}", "run.steps=2", "data.global_batch=1",
        f"model.encoder={encoder}", "data.image_size=[8, 8]",
        "tasks.names=[has_sphere]", "tasks.define={}",
    ).finish()  # fmt: skip
    assert end.code == 2 and "Traceback" not in end.stderr, end.stderr[-3000:]
    assert "error: a batch of one sample" in end.stderr


@pytest.mark.distributed
def test_a_folder_that_cannot_be_written(launcher, rooms_yaml):
    """Root may write to any folder, but not to those of /proc."""
    end = launcher.train(rooms_yaml, "run.out=/proc/run", "run.steps=2").finish()
    assert end.code == 2, end.stderr[-3000:]
    assert end.stderr.splitlines() == ["error: /proc/run: No such file or directory"]


@pytest.mark.distributed
def test_a_model_that_cannot_be_read(launcher, rooms_yaml, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"nothing")
    end = launcher.train(
        rooms_yaml, f"run.out={tmp_path / 'run'}", f"model.init_from=[{tmp_path / 'm.safetensors'}]"
    ).finish()
    assert end.code == 2 and end.stderr.startswith("error: ") and "m.safetensors" in end.stderr
    assert len(end.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.mark.distributed
def test_a_fault_of_ours_in_a_run(launcher, rooms_yaml, tmp_path):
    script = tmp_path / "faulty.py"
    script.write_text(
        "import runpy, sys, trainer.loop\n"
        "def train_step(*_): raise KeyError('surprise')\n"
        "trainer.loop.train_step = train_step\n"
        f"sys.argv[0] = {str(ROOT / 'trainer' / 'main.py')!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    arguments = ("--config", str(rooms_yaml), f"run.out={tmp_path / 'run'}", "run.steps=2")
    end = launcher.start(*arguments, script=script).finish()
    assert end.code == 1 and "Traceback" in end.stderr
    assert errors.REQUEST in end.stderr
    assert end.stderr.splitlines()[-1].startswith("error: KeyError at step 0, training: 'surprise'")
