"""Measure training steps on a GPU: against the published step, in growth, by engine and setting.

python benchmarks/gpu.py [--quick] [--minutes 9] [--out FILE]

Measures for at most so many minutes; what is not done then is named as not measured. Writes
benchmarks/results/gpu.json after each row, and prints a table; the exit code is 1 if something was
not measured. `--quick` tries all parts in small, also on the CPU, and writes only what --out names.
Without a GPU the script only says so.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
import torch
from rich.console import Console
from rich.table import Table

from data_pipelines.synthetic.rooms import write_rooms
from trainer.bench.case import StepCase, our_step
from trainer.bench.floor import measure_rates, timed
from trainer.bench.step import measure_step, step_flops
from trainer.config.loading import parse_config
from trainer.data_sources.shards import ShardData
from trainer.errors import first_line
from trainer.monitoring.throughput import peak_tflops

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
WARM_UP, REPEATS = 3, 10
ROW_SECONDS = 180  # longest time of a row
MIB = 2**20
ENGINES = ("one process", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")

ROOMS = StepCase("xception", 5, 3, 24, 256, "dense", precision="bf16")  # Taskonomy-5, K=3
CASES = {
    "1000 tasks, K=10, heads only": StepCase("none", 1000, 10, 64, 64, precision="bf16"),
    "9 tasks, K=2, 64 px": StepCase("residual64", 9, 2, 64, 64, precision="bf16"),
    "40 tasks, K=4, 64 px": StepCase("residual64", 40, 4, 64, 64, precision="bf16"),
    "200 tasks, K=8, 64 px": StepCase("residual64", 200, 8, 64, 64, precision="bf16"),
    "Taskonomy-5, K=3, 256 px": ROOMS,
}
GROWN = StepCase("residual64", 100, 10, 64, 64, precision="bf16")
TASKS, BRANCHES = (10, 100, 300, 1000), (1, 4, 7)  # K=10 and N=100 are in both
SMALL_BRANCHES = StepCase("residual64", 40, 8, 32, 32, precision="bf16")
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "cuDNN's benchmark": {"cudnn_benchmark": True},
    "weights not channels last": {"channels_last": "never"},
    "recomputed": {"checkpoint": True},
    "tf32": {"precision": "tf32"},
    "fp32": {"precision": "fp32"},
    "compiled": {"compile": True},
    "compiled, CUDA graphs": {"compile": "reduce-overhead"},
}
COMPILED = ("compiled", "compiled, CUDA graphs")
ON_GPUS_ONLY = ("tf32", "compiled, CUDA graphs")
LABELS = ("depth_zbuffer", "normal", "segment_semantic", "keypoints2d", "edge_texture")

Row = dict[str, Any]
logger = logging.getLogger(__name__)


def speed(case: StepCase, milliseconds: float, flops: int, processes: int = 1) -> Row:
    """Return samples per second, and the fraction of the peak that each device reaches.

    Where the data sheet's peak is not known, it is the measured rate of large products.
    """
    peak = peak_tflops(case.device, case.precision)
    if peak is None:
        peak = measure_rates(case.device, case.dtype).flops / 1e12
    tflops = flops / milliseconds / 1e9
    return {
        "samples_per_second": processes * case.batch / milliseconds * 1e3,
        "tflops": tflops,
        "share_of_peak": tflops / peak,
    }


def against_naive(case: StepCase, repeats: int) -> Row:
    """Return `dmtg bench step` of a case, with the speed of this project's step."""
    row = measure_step(case, repeats)
    return {"ms": row["ours_ms"], "peak_mib": row["ours_peak_mb"], **row,
            **speed(case, row["ours_ms"], row["flops"])}  # fmt: skip


def alone(case: StepCase, repeats: int, processes: int = 1) -> Row:
    """Return the median time of this project's step, its speed and the peak of its memory."""
    on_gpu = case.device.type == "cuda"
    torch.compiler.reset()
    torch.cuda.empty_cache()
    with our_step(case) as (step, network):
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(WARM_UP):
            step()
        milliseconds = 1e3 * median(timed(step, case.device) for _ in range(repeats))
        peak = torch.cuda.max_memory_allocated() / MIB if on_gpu else None
        flops = step_flops(case, network, step)
    return {"ms": milliseconds, "peak_mib": peak, "flops": flops, "case": asdict(case),
            **speed(case, milliseconds, flops, processes)}  # fmt: skip


def under_engine(engine: str, case: StepCase, processes: int, repeats: int) -> Row:
    """Return `alone` of a case whose batch each process has, launched as a user does."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        out = Path(folder) / "row.json"
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        launcher = ["-m", "accelerate.commands.launch", "--main_process_port", str(port),
                    "--config_file", str(ROOT / "accelerate_configs" / f"{engine}.yaml"),
                    "--num_processes", str(processes)]  # fmt: skip
        script = [__file__, "--child", str(out), json.dumps(asdict(case)), str(repeats)]
        command = [sys.executable, *([] if engine == ENGINES[0] else launcher), *script]
        launch(command)
        return json.loads(out.read_text())


def launch(command: list[str]) -> None:
    """Run a command; none of the processes that it starts is left, also when it is interrupted.

    Raises:
        RuntimeError: It failed; with the last error in its output.
    """
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            written = process.communicate()[1]
        except BaseException:
            # The launcher gives each worker a session.
            with suppress(psutil.NoSuchProcess):
                for worker in psutil.Process(process.pid).children(recursive=True):
                    worker.kill()
            process.kill()
            raise
    if process.returncode:
        # The launcher's own error follows those of the workers.
        errors = [
            line
            for line in written.splitlines()
            if "Error: " in line and "ChildFailedError" not in line
        ]
        raise RuntimeError(errors[-1] if errors else written[-500:])


def child(out: Path, case: StepCase, repeats: int) -> None:
    """Measure in a launched process; the first one writes the row."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    row = alone(case, repeats, processes)
    if int(os.environ.get("RANK", "0")) == 0:
        out.write_text(json.dumps({**row, "processes": processes}))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def loading(shards: Path, case: StepCase, workers: int, batches: int) -> Row:
    """Return the samples per second that a loader reads, and moves to the device."""
    config = parse_config({
        "run": {"out": "unused", "steps": 10**6},
        "data": {"shards": str(shards), "image_size": [case.size] * 2, "flip": True,
                 "global_batch": case.batch, "workers": workers},
        "tasks": {"names": list(LABELS)},
        "model": {"encoder": {"name": case.encoder}, "branches": case.branches},
    }, "the loader")  # fmt: skip
    loader = ShardData(config).train_batches(0, batches + workers, rank=0, world_size=1)
    iterator = iter(loader)
    for batch in islice(iterator, workers + 1):  # what the workers read while they start
        batch.to(case.device)
    start, count = time.perf_counter(), 0
    for batch in iterator:
        count += len(batch.to(case.device).images)
    seconds = time.perf_counter() - start
    return {"workers": workers, "ms": 1e3 * case.batch * seconds / count,
            "samples_per_second": count / seconds}  # fmt: skip


def rooms(shards: Path, case: StepCase, samples: int) -> Row:
    """Write the shards that are loaded, and return the samples per second."""
    start, cores = time.perf_counter(), len(os.sched_getaffinity(0))
    write_rooms(shards, samples, case.size, 0, workers=cores, progress=False)
    seconds = time.perf_counter() - start
    return {"ms": 1e3 * case.batch * seconds / samples, "samples_per_second": samples / seconds}


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise an error in the main thread if the block takes longer.

    Raises:
        TimeoutError: It does.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Report:
    """The rows of all sections; what cannot be measured becomes a row with its error.

    Args:
        seconds: After them nothing more is measured, and a row that is not done is stopped.
        out: File that is written after each row, or None.
    """

    def __init__(self, seconds: float, out: Path | None) -> None:
        self.sections: dict[str, dict[str, Row]] = {}
        self.failed: list[str] = []
        self._start = time.perf_counter()
        self._seconds, self._out = seconds, out

    def measure(self, section: str, name: str, function: Callable[..., Row], *args: object) -> Row:
        """Measure a row, log it and keep it."""
        start = time.perf_counter()
        try:
            left = self._seconds - (start - self._start)
            if left <= 0:
                raise TimeoutError(f"{self._seconds / 60:g} minutes are over")
            with time_limit(min(left, ROW_SECONDS)):
                row = function(*args)
        except Exception as error:  # the other rows are still worth having
            row = {"error": f"{type(error).__name__}: {first_line(error)}"}
            self.failed.append(f"{section}, {name}: {row['error']}")
        row["measured_in_seconds"] = time.perf_counter() - start
        self.sections.setdefault(section, {})[name] = row
        shown = row.get("error") or f"{row['ms']:.2f} ms, {row['samples_per_second']:.0f} samples/s"
        logger.info("%s, %s: %s (%.0f s)", section, name, shown, row["measured_in_seconds"])
        self.save()
        return row

    def save(self) -> None:
        """Write all rows."""
        if self._out is not None:
            minutes = (time.perf_counter() - self._start) / 60
            record = {"command": "python benchmarks/gpu.py", "machine": machine(),
                      "minutes": minutes, "sections": self.sections}  # fmt: skip
            self._out.write_text(f"{json.dumps(record, indent=1)}\n")

    def table(self) -> Table:
        """Return the rows as a table."""
        table = Table(
            "", "", "ms a step", "samples/s", "of peak", "MiB", "times naive", "of a step"
        )
        keys = (("ms", ".2f"), ("samples_per_second", ".0f"), ("share_of_peak", ".1%"),
                ("peak_mib", ".0f"), ("ratio", ".2f"), ("of_step", ".2f"))  # fmt: skip
        for section, rows in self.sections.items():
            for name, row in rows.items():
                cells = (row.get(key) for key, _ in keys)
                shown = (
                    "" if cell is None else f"{cell:{form}}"
                    for cell, (_, form) in zip(cells, keys, strict=True)
                )  # fmt: skip
                table.add_row(section, name, *(["not measured"] if "error" in row else shown))
            table.add_section()
        return table


def machine() -> Row:
    """Return what the numbers were measured on."""
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {"gpus": gpus, "torch": torch.__version__, "cuda": torch.version.cuda,
            "python": platform.python_version(), "cores": os.cpu_count()}  # fmt: skip


def small(case: StepCase) -> StepCase:
    """Return a case of the same parts that a CPU computes in a moment."""
    precision = "fp32" if case.precision == "bf16" else case.precision
    return replace(case, tasks=min(case.tasks, 4), branches=2, batch=2,
                   size=32 if case.size > 64 else case.size, precision=precision)  # fmt: skip


def measure_all(report: Report, *, quick: bool) -> None:
    """Measure every section, the most wanted and the fastest first."""
    use = small if quick else (lambda case: case)
    repeats = 1 if quick else REPEATS
    on_gpu = torch.cuda.is_available()
    for name, case in CASES.items():
        report.measure("against naive", name, against_naive, use(case), min(repeats, 5))
    grown = use(GROWN)
    for tasks in TASKS[:2] if quick else TASKS:
        name = f"N={tasks}, K={grown.branches}"
        report.measure("growth", name, alone, replace(grown, tasks=tasks), repeats)
    for branches in BRANCHES[:1] if quick else BRANCHES:
        name = f"N={grown.tasks}, K={branches}"
        report.measure("growth", name, alone, replace(grown, branches=branches), repeats)
    settings = [name for name in SETTINGS if on_gpu or name not in ON_GPUS_ONLY]
    compiled = [name for name in settings if name in COMPILED]
    plain = [name for name in settings if name not in COMPILED]
    _measure_settings(report, "Taskonomy-5", use(ROOMS), plain, repeats)
    _measure_loading(report, use(ROOMS), quick=quick)
    _measure_engines(report, use(ROOMS), repeats)
    names = [*plain[:2], *compiled]
    _measure_settings(report, "small branches", use(SMALL_BRANCHES), names, repeats)
    if not quick:  # a CPU takes minutes to compile the large branches
        _measure_settings(report, "Taskonomy-5", ROOMS, compiled, repeats)


def _measure_settings(
    report: Report, section: str, case: StepCase, names: Iterable[str], repeats: int
) -> None:
    for name in names:
        report.measure(section, name, _with, case, SETTINGS[name], repeats)


def _with(case: StepCase, values: dict[str, Any], repeats: int) -> Row:
    return alone(replace(case, **values), repeats)


def _measure_engines(report: Report, case: StepCase, repeats: int) -> None:
    on_gpu = torch.cuda.is_available()
    processes = torch.cuda.device_count() if on_gpu else 2
    engines = ENGINES if on_gpu else ("one process", "ddp_cpu", "zero2_cpu")
    for engine in engines:
        report.measure("engines", engine, under_engine, engine, case, processes, repeats)
    if on_gpu:
        overlapping = replace(case, overlap_comm=True)
        name = "zero2, overlap_comm"
        report.measure("engines", name, under_engine, "zero2", overlapping, processes, repeats)


def _measure_loading(report: Report, case: StepCase, *, quick: bool) -> None:
    """Measure the loader with some numbers of workers, and compare it with the step."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "rooms"
        report.measure("loading", "writing the shards", rooms, shards, case, 16 if quick else 512)
        for workers in (1,) if quick else sorted({1, max(1, cores // 2), cores}):
            row = report.measure("loading", f"{workers} of {cores} cores", loading, shards, case,
                                 workers, 4 if quick else 20 * workers)  # fmt: skip
            step = report.sections["Taskonomy-5"]["as it is"]
            if "error" not in row and "error" not in step:
                row["of_step"] = row["samples_per_second"] / step["samples_per_second"]
    report.save()


def main() -> int:
    """Measure, print the table, write the results; return 1 if something was not measured."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small cases; nothing is written")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, help=f"JSON file; {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        out, case, repeats = arguments.child
        child(Path(out), StepCase(**json.loads(case)), int(repeats))
        return 0
    if not torch.cuda.is_available() and not arguments.quick:
        logger.info("skipped: no GPU, torch finds no CUDA device (--quick tries it on the CPU)")
        return 0
    out = arguments.out or (None if arguments.quick else RESULTS)
    report = Report(60 * arguments.minutes, out)
    measure_all(report, quick=arguments.quick)
    Console(width=110).print(report.table())
    for line in report.failed:
        logger.error("not measured: %s", line)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
