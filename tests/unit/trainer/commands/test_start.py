"""What the program imports before it starts to work: modules are counted, not seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
HEAVY = {
    "accelerate", "datasets", "deepspeed", "matplotlib", "scipy", "sklearn", "tensorboard",
    "transformers", "webdataset",
}  # fmt: skip
HEAVY_FOR_HELP = HEAVY | {"PIL", "fsspec", "numpy", "pyarrow", "torch", "yaml"}
MOST_MODULES = 400  # 300 today; `import torch` alone makes them more than 1,000

HELP = """
import contextlib, io, json, sys
from typer.main import get_command
from trainer.commands.app import app

def show(command, path):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        command.main(["--help"], prog_name=path, standalone_mode=False)
    shown[path] = output.getvalue()
    for name, part in getattr(command, "commands", {}).items():
        show(part, f"{path} {name}")

shown = {}
show(get_command(app), "dmtg")
print(json.dumps({"shown": shown, "modules": list(sys.modules)}))
"""
PRINT_CONFIG = """
import contextlib, io, json, runpy, sys
sys.argv = ["trainer/main.py", "--config", "experiments/demo.yaml", "--print-config"]
with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
    runpy.run_path(sys.argv[0], run_name="__main__")
print(json.dumps({"shown": output.getvalue(), "modules": list(sys.modules)}))
"""


def run_python(code):
    """What a fresh interpreter shows, and the names of all modules that it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    return result["shown"], set(result["modules"])


@pytest.fixture(scope="module")
def help_texts():
    return run_python(HELP)


def test_help_imports_little(help_texts):
    modules = help_texts[1]
    assert not {name.partition(".")[0] for name in modules} & HEAVY_FOR_HELP
    assert len(modules) < MOST_MODULES


def test_every_command_has_help(help_texts):
    shown = help_texts[0]
    assert shown.keys() >= {
        "dmtg", "dmtg export", "dmtg eval", "dmtg predict", "dmtg report", "dmtg doctor",
        "dmtg train", "dmtg groups", "dmtg status", "dmtg plan", "dmtg compare",
        "dmtg slurm", "dmtg launch-files",
        "dmtg shards", "dmtg shards rooms", "dmtg bench", "dmtg bench step",
    }  # fmt: skip
    for path, text in shown.items():
        assert text.startswith(f"Usage: {path} ") and "--help" in text
        words = [line for line in text.splitlines() if line.startswith("  ")]
        assert words, f"{path} says what it does"


def test_print_config_imports_no_engine():
    shown, modules = run_python(PRINT_CONFIG)
    assert shown.startswith("plugins: []\nrun:\n") and "steps: 600" in shown
    assert not {name.partition(".")[0] for name in modules} & HEAVY
    assert "torch.utils.tensorboard" not in modules
