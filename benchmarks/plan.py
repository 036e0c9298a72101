"""Compare memory and time predicted by `dmtg plan` with real training steps.

python benchmarks/plan.py

Every case executes steps of `trainer/step.py` on batches of zeros, in one process or in two over
gloo. The profiler of torch counts all allocations from the start of the session; the time is
measured on other steps, without the profiler. Writes benchmarks/results/plan.json; the exit code is
1 if a prediction of memory or time is wrong by more than 15 %.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from plan_cases import CASES, TASKS, Case, MadeUpData, case_config
from torch.profiler import ProfilerActivity, profile, record_function

from trainer.builders import build_network
from trainer.engines.accelerator import make_accelerator
from trainer.planning.memory import NetworkBytes, engine_memory
from trainer.planning.step_cost import step_cost
from trainer.planning.step_time import measure_time
from trainer.session import Session, start_session
from trainer.step import train_step

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "plan.json"
TIMED_STEPS = 10
PROFILED_STEPS = 5
STEP = "a step of the case"
FIRST_STEP = 10  # from this step the default recipe collects gradient statistics in every step
LARGE = 900_000_000  # bytes; only ZeRO's buffers are larger, and a CPU never accesses their pages

REPEATS = (3, 2)  # runs of a case with one process, and with two
ALLOWED = {"parameters": 0.0, "resting": 0.15, "peak": 0.15, "seconds": 0.15}


def run_steps(model: str, precision: str, accumulation: int, out: Path) -> None:
    """Execute the steps of a case and write the measurements; the launcher starts this function."""
    config = case_config(model, precision, accumulation)
    config = config.model_copy(
        update={"run": config.run.model_copy(update={"out": out.parent / "run"})}
    )
    accelerator = make_accelerator(config)
    data = MadeUpData(model, config, accelerator.num_processes)
    with ExitStack() as stack:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            session = stack.enter_context(start_session(config, accelerator, data))
            batches = data.train_batches(0, 10**6)

            def step() -> float:
                started = time.perf_counter()
                micro_batches = [next(batches) for _ in range(accumulation)]
                train_step(session, micro_batches)
                session.step += 1
                return time.perf_counter() - started

            session.step = FIRST_STEP
            for _ in range(PROFILED_STEPS):
                gc.collect()
                with record_function(STEP):
                    step()
            gc.collect()
        session.step = 0  # measure steps without gradient statistics, which are the majority
        single_process = accelerator.num_processes == 1
        before = predicted_seconds(session) if single_process else 0.0
        seconds = [step() for _ in range(TIMED_STEPS)]
        after = predicted_seconds(session) if single_process else 0.0
        if accelerator.is_main_process:
            trace = out.with_name("trace.json")
            profiled.export_chrome_trace(str(trace))
            peak, resting = allocations(trace)
            measured = {"peak": peak, "resting": resting, "seconds": statistics.median(seconds[2:])}
            if single_process:  # mean of before and after: the load of the machine may change
                measured["predicted_seconds"] = (before + after) / 2
            measured["parameters"] = sum(
                getattr(p, "ds_numel", p.numel()) for p in session.engine.module.parameters()
            )
            out.write_text(json.dumps(measured))
    accelerator.end_training()


def predicted_seconds(session: Session) -> float:
    """Return the time of a step that the plan predicts from measured passes and updates."""
    config, network = session.config, session.engine.module
    accumulation = config.optim.gradient_accumulation_steps
    measured = measure_time(
        network,
        network.heads,
        config.data.global_batch // accumulation,
        config.run.precision or "fp32",
        config.optim,
        session.accelerator.device,
    )
    return accumulation * measured.micro_batch + measured.update


def allocations(trace: Path) -> tuple[int, int]:
    """Return the minimum over the steps of their peak of bytes, and the bytes after the last step.

    Ignore blocks of `LARGE` or more bytes and the copies that gloo makes during a message. Use the
    minimum because gloo's threads may free a message late, which increases the peak of a step.
    """
    events = json.loads(trace.read_text())["traceEvents"]
    messages = [
        (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("name", "").startswith("c10d::") and "dur" in event
    ]
    starts = sorted(event["ts"] for event in events if event.get("name") == STEP)
    alive: dict[int, int] = {}
    total = 0
    peaks = dict.fromkeys(starts, 0)
    changes = [
        (event["ts"], event["args"]["Bytes"], event["args"]["Addr"])
        for event in events
        if event.get("name") == "[memory]"
    ]
    for now, size, address in sorted(changes):  # at equal times, freed blocks come first
        total -= alive.pop(address, 0)
        if 0 < size < LARGE and not any(first <= now <= last for first, last in messages):
            alive[address] = size
            total += size
        begun_steps = [start for start in starts if start <= now]
        if begun_steps:
            peaks[begun_steps[-1]] = max(peaks[begun_steps[-1]], total)
    return min(peaks[start] for start in starts[1:]), total


def measure(model: str, engine: str, precision: str, accumulation: int) -> dict[str, Any]:
    """Return the measurements of a case, which runs in new processes."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port, out = probe.getsockname()[1], Path(folder) / "measured.json"
        probe.close()
        config = ROOT / "accelerate_configs" / f"{engine}.yaml"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
        if engine != "cpu":
            launcher += ["--main_process_port", str(port)]
        script = [__file__, "--child", str(out), model, precision, str(accumulation)]
        on_cpu = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launcher, *script]
        result = subprocess.run(command, capture_output=True, timeout=600, env=on_cpu, text=True)
        if result.returncode:
            raise RuntimeError(f"{model} with {engine}: {result.stderr[-2000:]}")
        return json.loads(out.read_text())


def predict(model: str, engine: str, precision: str, accumulation: int) -> dict[str, Any]:
    """Return the prediction for a case, without the buffers that the measurement ignores."""
    config, processes = case_config(model, precision, accumulation), 1 if engine == "cpu" else 2
    with torch.device("meta"):
        network = build_network(config, TASKS[model])
    micro_batch = config.data.global_batch // processes // accumulation
    cost = step_cost(network, network.heads, micro_batch, precision, gradient_statistics=True)
    name = "ddp" if engine == "cpu" else engine.removesuffix("_cpu")
    sizes = NetworkBytes.of(network, precision)
    memory = engine_memory(name, sizes, cost, processes, accumulation, bucket=0, nccl=0)
    return {
        "parameters": sizes.weights // 4,
        "peak": memory.total,
        "resting": memory.weights
        + memory.moments
        + (memory.gradients if name == "zero3" else 0)
        + (sizes.weights if name == "ddp" and processes > 1 else 0),
    }


def compare(case: Case) -> dict[str, Any]:
    """Return the prediction, the measurement and the relative errors of a case."""
    predicted, runs = predict(*case), [measure(*case) for _ in range(REPEATS[case[1] != "cpu"])]
    # Use the minimum over runs: gloo's threads may keep memory of the start until the end of a run.
    measured = {key: min(run[key] for run in runs) for key in runs[0]}
    errors = {key: predicted[key] / measured[key] - 1 for key in predicted}
    if case[0] != "mlp":  # statistics and labels are larger than the weights of the other models
        del errors["resting"]
    if "predicted_seconds" in measured:
        time_errors = [run["predicted_seconds"] / run["seconds"] - 1 for run in runs]
        errors["seconds"] = statistics.median(time_errors)
    return {"predicted": predicted, "measured": measured, "errors": errors}


def main() -> int:
    """Compare all cases and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--engine", help="only its cases; results of the others stay")
    arguments = parser.parse_args()
    if arguments.child:
        out, model, precision, accumulation = arguments.child
        run_steps(model, precision, int(accumulation), Path(out))
        return 0
    cases = json.loads(RESULTS.read_text())["cases"] if arguments.engine else {}
    for case in CASES:
        if arguments.engine not in (None, case[1]):
            continue
        name = f"{case[0]} {case[1]} {case[2]} x{case[3]}"
        cases[name] = compare(case)
        sys.stdout.write(f"{name}: {json.dumps(cases[name]['errors'])}\n")
        sys.stdout.flush()
    claims = {
        f"{name}: {key} within {ALLOWED[key]:.0%}": abs(error) <= ALLOWED[key]
        for name, compared in cases.items()
        for key, error in compared["errors"].items()
    }
    results = {"command": "python benchmarks/plan.py", "cases": cases, "claims": claims}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
