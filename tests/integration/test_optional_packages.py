"""Broken installations of packages that only some parts need: all else works as before.

A process that finds stubs of them on its path, which fail when they are imported, runs the commands
one after another.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import yaml
from PIL import Image

from tests.processes import ROOT, SETTINGS, TIMM

STUBS = {
    "torchvision": "raise RuntimeError('operator torchvision::nms does not exist')",
    "timm": "raise ImportError('cannot import name x from timm')",
    "transformers": "raise OSError('libbroken.so: cannot open shared object file')",
}
RUN = """
import contextlib, io, json, runpy, sys, traceback
from trainer.commands import app

for argv in json.load(sys.stdin):
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = argv
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if argv[0] == "dmtg":
                app.main()
            else:
                runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as end:
            code = 0 if end.code is None else end.code
        except BaseException:
            code = traceback.format_exc()
    sys.stdout.write(json.dumps([code, out.getvalue(), err.getvalue()]) + chr(10))
    sys.stdout.flush()
"""


@pytest.fixture(scope="module")
def stubbed(tmp_path_factory):
    """Run commands, with broken stubs of packages on the path: code, output and errors of each."""

    def run(packages, commands):
        folder = tmp_path_factory.mktemp("stubs")
        for name in packages:
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(STUBS[name])
            # As an installed package has it; some libraries ask for its version.
            info = folder / f"{name}-99.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99\n")
        end = subprocess.run(
            [sys.executable, "-c", RUN],
            input=json.dumps([list(map(str, command)) for command in commands]),
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, **SETTINGS, "PYTHONPATH": f"{folder}:{ROOT}:{TIMM}"},
        )
        ended = [json.loads(line) for line in end.stdout.splitlines() if line.startswith("[")]
        assert len(ended) == len(commands), end.stderr
        return ended

    return run


def training(digits, out, **encoder):
    """Write a configuration and return the command that trains it."""
    out.mkdir(parents=True)
    tree = {
        "run": {"out": str(out / "run"), "steps": 2, "precision": "fp32"},
        "data": {"shards": str(digits), "image_size": [32, 32], "global_batch": 8, "workers": 0},
        "tasks": {"names": ["sum", "right_is_2"]},
        "model": {"branches": 2, "encoder": encoder},
        "grouping": {"recipe": "multitask"},
    }
    (out / "config.yaml").write_text(yaml.safe_dump(tree))
    return [ROOT / "trainer" / "main.py", "--config", out / "config.yaml"]


RESIDUAL = {"name": "residual64", "options": {"channels": 4}}
RESNET = {
    "name": "backbone",
    "options": {
        "model_type": "resnet",
        "layer_type": "basic",
        "embedding_size": 8,
        "hidden_sizes": [8],
        "depths": [1],
    },
}


def test_commands_work_beside_broken_packages(stubbed, digits, tmp_path):
    train = training(digits, tmp_path / "a", **RESIDUAL)
    run, model = tmp_path / "a" / "run", tmp_path / "model.safetensors"
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png")
    commands = [
        ["dmtg", "shards", "digits", "--out", tmp_path / "digits"],
        ["dmtg", "doctor", digits, "--samples", "4"],
        [*train, "--print-config"],
        train,
        ["dmtg", "status", run],
        ["dmtg", "export", run, "--out", model],
        ["dmtg", "eval", model, "--shards", digits],
        ["dmtg", "shards", "images", digits, "--limit", "1", "--out", tmp_path / "images"],
        ["dmtg", "predict", model, tmp_path / "photo.png", "--out", tmp_path / "predicted"],
        ["dmtg", "plan", tmp_path / "a" / "config.yaml"],
        ["dmtg", "launch-files"],
        training(digits, tmp_path / "b", **RESNET),
        training(digits, tmp_path / "c", name="timm", options={"model": "convnext_tiny"}),
    ]
    *ended, backbone, timm = stubbed(STUBS, commands)
    for command, (code, _, err) in zip(commands, ended, strict=False):
        assert code == 0, (command, err[-3000:], code)
    for (code, _, err), package, cause in (
        (backbone, "transformers", "OSError: libbroken.so: cannot open shared object file"),
        (timm, "timm", "ImportError: cannot import name x from timm"),
    ):
        assert code == 2 and "Traceback" not in err
        (line,) = [line for line in err.splitlines() if "error:" in line]
        assert f"needs the package {package}, which cannot be imported ({cause}); inst" in line


@pytest.mark.slow
def test_a_broken_torchvision_breaks_nothing(stubbed, digits, tmp_path):
    """Libraries that find it installed import it; it is as if it were not there."""
    run, model = tmp_path / "a" / "run", tmp_path / "model.safetensors"
    commands = [
        training(digits, tmp_path / "a", **RESNET),
        ["dmtg", "export", run, "--out", model],
        ["dmtg", "eval", model, "--shards", digits],
    ]
    if importlib.util.find_spec("timm") is not None:
        options = {"model": "test_convnext"}
        commands.append(training(digits, tmp_path / "b", name="timm", options=options))
    for command, (code, _, err) in zip(commands, stubbed(["torchvision"], commands), strict=True):
        assert code == 0, (command, err[-3000:], code)


@pytest.mark.slow
def test_deepspeed_says_what_is_wrong(stubbed, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    ((code, _, err),) = stubbed(["transformers"], [training(digits, tmp_path / "a", **RESIDUAL)])
    assert code == 2 and "Traceback" not in err
    assert "needs the package transformers, which cannot be imported (OSError: libbroken" in err
