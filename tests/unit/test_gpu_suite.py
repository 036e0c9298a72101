"""The tests that need a GPU: without one they are skipped, and most of them run on the CPU, too."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.gpu import wheels
from tests.gpu.report import Report

ROOT = Path(__file__).resolve().parents[2]
HERE = ("recipes", "networks", "memory", "monitor", "fsdp", "compile")
PROCESSES = ("engines", "fp16", "failures", "two_devices", "batchnorm")


def run(*arguments, device="cuda", **variables):
    variables |= {"CUDA_VISIBLE_DEVICES": "", "DMTG_TEST_DEVICE": device}
    environment = {**os.environ, **variables}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout


def modules(names):
    return [f"tests/gpu/test_{name}.py" for name in names]


def test_all_tests_are_marked_and_skipped_with_a_sentence_without_a_gpu(tmp_path):
    report = tmp_path / "new" / "report.log"
    code, output = run("tests/gpu", "-m", "gpu", DMTG_TEST_REPORT=str(report))
    assert code == 0, output[-4000:]
    number = re.search(r"^(\d{3}) skipped in ", output, re.MULTILINE)
    assert number is not None, "none is deselected"
    reasons = [line for line in output.splitlines() if line.startswith("SKIPPED")]
    assert len(reasons) > 5
    # Tests of other parts may have a sentence of their own.
    assert all("GPU" in reason or "CUDA" in reason for reason in reasons)
    lines = report.read_text().splitlines()
    assert len([line for line in lines if line.startswith("skipped")]) == int(number.group(1))


def test_the_report_holds_each_result_as_soon_as_it_is_known(tmp_path):
    path = tmp_path / "report.log"
    report = Report(path)

    def add(name, when, outcome, **more):
        report.pytest_runtest_logreport(
            pytest.TestReport(name, ("f.py", 1, name), {}, outcome, when=when, duration=1.5, **more)
        )

    printed = [("Captured stderr call", "what a process has printed")]
    add("one", "setup", "passed", longrepr=None)
    add("one", "call", "passed", longrepr=None)
    add("two", "call", "failed", longrepr="E  0.2 < 0.1", sections=printed)
    add("three", "setup", "failed", longrepr="no folder")
    assert path.read_text().splitlines() == [
        "passed: one (1.5 s)", "failed: two (1.5 s)", "E  0.2 < 0.1",
        "--- Captured stderr call", "what a process has printed",
        "failed in setup: three (1.5 s)", "no folder",
    ]  # fmt: skip


def test_no_other_target_selects_them():
    commands = [
        line for line in (ROOT / "Makefile").read_text().splitlines() if " -m pytest" in line
    ]
    assert len(commands) > 3
    assert all("not gpu" in line or "tests/gpu" in line for line in commands)


@pytest.mark.slow
def test_bodies_in_this_process_run_on_the_cpu():
    code, output = run(*modules(HERE), device="cpu")
    assert code == 0 and " passed" in output, output[-8000:]


@pytest.mark.slow
def test_bodies_that_start_processes_run_on_the_cpu():
    """With one engine: tests/distributed has them all."""
    code, output = run(
        *modules(PROCESSES), "-k", "zero2 or test_batchnorm or sigterm or None", device="cpu"
    )
    assert code == 0 and " passed" in output, output[-8000:]


def test_wheels_leave_out_what_is_there_or_not_needed():
    everything = wheels.needed("3.12", {})
    assert {"accelerate", "deepspeed", "pydantic-core", "pytest", "scipy"} <= everything.keys()
    assert not everything.keys() & {*wheels.LEFT_OUT, "ruff", "mypy", "s3fs", "nvidia-nccl-cu13"}
    have = {name: version(name) for name in everything if name not in ("deepspeed", "tenacity")}
    assert wheels.needed("3.12", have).keys() == {"deepspeed", "tenacity"}
    old = wheels.needed("3.12", {**have, "accelerate": "1.0"})
    assert "accelerate" in old and str(old["accelerate"]) == ">=1.10"


def test_wheels_are_shared_out_within_the_limit(tmp_path):
    sizes = (7, 5, 4, 3, 1)
    paths = [tmp_path / str(number) for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(bytes(size))
    parts = wheels.share_out(paths, 10)
    assert [[p.stat().st_size for p in part] for part in parts] == [[7, 3], [5, 4, 1]]
