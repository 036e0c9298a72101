"""The script `benchmarks/gpu.py`, as far as a CPU shows it."""

import importlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from trainer.bench.case import StepCase, bench_config

ROOT = Path(__file__).resolve().parents[2]
SMALL = StepCase("residual64", tasks=2, branches=2, batch=2, size=16)
ROW = {"ms": 1.0, "samples_per_second": 2.0}
# Starts a worker in a session of its own, as launchers do, and waits for it.
LAUNCHER = """
import subprocess, sys
command = [sys.executable, "-c", "import time; time.sleep(60)"]
worker = subprocess.Popen(command, start_new_session=True)
open(sys.argv[1], "w").write(str(worker.pid))
worker.wait()
"""


@pytest.fixture
def gpu(monkeypatch):
    """`benchmarks/gpu.py`."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


def fail():
    raise RuntimeError("CUDA error: an illegal memory access\nand advice")


def test_a_failed_row_leaves_the_others(gpu, tmp_path):
    report = gpu.Report(60, tmp_path / "gpu.json")
    report.measure("one", "bad", fail)
    report.measure("two", "good", lambda: dict(ROW))
    written = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert written["one"]["bad"]["error"] == "RuntimeError: CUDA error: an illegal memory access"
    assert written["two"]["good"]["ms"] == 1.0
    assert report.table().row_count == 2 and len(report.failed) == 1


def test_what_is_not_done_in_time_is_stopped(gpu, tmp_path):
    report = gpu.Report(0.3, tmp_path / "gpu.json")
    start = time.monotonic()
    report.measure("one", "slow", time.sleep, 60)
    report.measure("one", "late", lambda: dict(ROW))
    assert time.monotonic() - start < 30
    rows = json.loads((tmp_path / "gpu.json").read_text())["sections"]["one"]
    assert rows["slow"]["error"].startswith("TimeoutError: not done after")
    assert rows["late"]["error"].endswith("minutes are over")


def test_shards_that_cannot_be_written_are_rows_with_an_error(gpu, monkeypatch):
    def no_space(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(gpu, "write_rooms", no_space)
    report = gpu.Report(60, None)
    report.sections["Taskonomy-5"] = {"as it is": dict(ROW)}
    gpu._measure_loading(report, SMALL, quick=True)
    assert len(report.failed) == 2 and "No space left" in report.failed[0]


def test_an_interrupted_launch_leaves_no_process(gpu, tmp_path):
    written = tmp_path / "pid"
    with pytest.raises(TimeoutError), gpu.time_limit(5):
        gpu.launch([sys.executable, "-c", LAUNCHER, str(written)])
    worker = int(written.read_text())
    end = time.monotonic() + 20
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_error_of_a_launch_is_that_of_a_worker(gpu):
    lines = ("[rank0]: RuntimeError: no such engine", "errors.ChildFailedError: ", "=====")
    code = f"import sys; sys.stderr.write({chr(10).join(lines)!r}); sys.exit(1)"
    with pytest.raises(RuntimeError, match=r"^\[rank0\]: RuntimeError: no such engine$"):
        gpu.launch([sys.executable, "-c", code])


def test_every_setting_is_one_of_a_run(gpu, tmp_path):
    found = {
        name: bench_config(replace(gpu.ROOMS, **values), tmp_path)
        for name, values in gpu.SETTINGS.items()
    }
    assert found["compiled"].model.compile is True
    assert found["compiled, CUDA graphs"].model.compile_mode == "reduce-overhead"
    assert found["weights not channels last"].model.channels_last == "never"
    assert found["cuDNN's benchmark"].run.cudnn_benchmark
    assert found["tf32"].run.precision == "tf32"


@pytest.mark.usefixtures("forget_accelerate")
def test_one_process_measures_several_precisions(gpu):
    for precision in ("bf16", "fp32"):
        row = gpu.alone(replace(SMALL, precision=precision), 1)
        assert row["ms"] > 0 and row["flops"] > 0 and row["case"]["precision"] == precision
