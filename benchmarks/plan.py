"""How far `dmtg plan` is from what real training steps take, in memory and in time.

python benchmarks/plan.py

Every case makes steps of `trainer/step.py` on data made up, in one process or in two over gloo. All
that torch allocates from the start of the session on is counted by its profiler; the time is that
of other steps, without the profiler. Results go to benchmarks/results/plan.json; the exit code is 1
where memory or time are off by more than 15 %.
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
FIRST_STEP = 10  # from here on the default recipe collects the network's statistics in every step
LARGE = 900_000_000  # only ZeRO's buffers, which are known, are larger; a CPU never touches them

REPEATS = (3, 2)  # of one process, and of two
ALLOWED = {"parameters": 0.0, "resting": 0.15, "peak": 0.15, "seconds": 0.15}


def run_steps(model: str, precision: str, accumulation: int, out: Path) -> None:
    """Make the steps of a case, in a process of a launcher, and write what they took."""
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
        session.step = 0  # the time is that of steps which collect no statistics, as most do
        alone = accelerator.num_processes == 1
        before = predicted_seconds(session) if alone else 0.0
        seconds = [step() for _ in range(TIMED_STEPS)]
        after = predicted_seconds(session) if alone else 0.0
        if accelerator.is_main_process:
            trace = out.with_name("trace.json")
            profiled.export_chrome_trace(str(trace))
            peak, resting = allocations(trace)
            found = {"peak": peak, "resting": resting, "seconds": statistics.median(seconds[2:])}
            if alone:  # just before and after the steps, on a machine that others use, too
                found["predicted_seconds"] = (before + after) / 2
            found["parameters"] = sum(
                getattr(p, "ds_numel", p.numel()) for p in session.engine.module.parameters()
            )
            out.write_text(json.dumps(found))
    accelerator.end_training()


def predicted_seconds(session: Session) -> float:
    """A step's time as the plan has it: from passes and updates of a network made up."""
    config, network = session.config, session.engine.module
    accumulation = config.optim.gradient_accumulation_steps
    own = measure_time(
        network,
        network.heads,
        config.data.global_batch // accumulation,
        config.run.precision or "fp32",
        config.optim,
        session.accelerator.device,
    )
    return accumulation * own.micro_batch + own.update


def allocations(trace: Path) -> tuple[int, int]:
    """Bytes in a trace: the least of the steps' peaks, and what is left after the last of them.

    Left out are blocks that are `LARGE`, and what gloo copies for itself within a message. Its
    threads may let go of a message late, and a peak is that much higher then: the least counts.
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
    for now, size, place in sorted(changes):  # of one time, what is freed comes first
        total -= alive.pop(place, 0)
        if 0 < size < LARGE and not any(first <= now <= last for first, last in messages):
            alive[place] = size
            total += size
        begun = [start for start in starts if start <= now]
        if begun:
            peaks[begun[-1]] = max(peaks[begun[-1]], total)
    return min(peaks[start] for start in starts[1:]), total


def measure(model: str, engine: str, precision: str, accumulation: int) -> dict[str, Any]:
    """What the steps of a case took in processes of their own."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port, out = probe.getsockname()[1], Path(folder) / "found.json"
        probe.close()
        config = ROOT / "accelerate_configs" / f"{engine}.yaml"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
        if engine != "cpu":
            launcher += ["--main_process_port", str(port)]
        own = [__file__, "--child", str(out), model, precision, str(accumulation)]
        on_cpu = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launcher, *own]
        end = subprocess.run(command, capture_output=True, timeout=600, env=on_cpu, text=True)
        if end.returncode:
            raise RuntimeError(f"{model} with {engine}: {end.stderr[-2000:]}")
        return json.loads(out.read_text())


def predict(model: str, engine: str, precision: str, accumulation: int) -> dict[str, Any]:
    """What the plan says of a case, without the buffers that were left out of the measurement."""
    config, processes = case_config(model, precision, accumulation), 1 if engine == "cpu" else 2
    with torch.device("meta"):
        network = build_network(config, TASKS[model])
    micro_batch = config.data.global_batch // processes // accumulation
    cost = step_cost(network, network.heads, micro_batch, precision, gradient_statistics=True)
    name = "ddp" if engine == "cpu" else engine.removesuffix("_cpu")
    sizes = NetworkBytes.of(network, precision)
    memory = engine_memory(name, sizes, cost, processes, accumulation, bucket=0)
    return {
        "parameters": sizes.weights // 4,
        "peak": memory.total,
        "resting": memory.weights
        + memory.moments
        + (memory.gradients if name == "zero3" else 0)
        + (sizes.weights if name == "ddp" and processes > 1 else 0),
    }


def compare(case: Case) -> dict[str, Any]:
    """A case as predicted and as measured, and how far they are apart."""
    predicted, runs = predict(*case), [measure(*case) for _ in range(REPEATS[case[1] != "cpu"])]
    # What gloo's threads still hold when a run begins stays until it ends: the least counts.
    measured = {key: min(run[key] for run in runs) for key in runs[0]}
    errors = {key: predicted[key] / measured[key] - 1 for key in predicted}
    if case[0] != "mlp":  # where weights are small beside what a run keeps of statistics and labels
        del errors["resting"]
    if "predicted_seconds" in measured:
        pairs = [run["predicted_seconds"] / run["seconds"] - 1 for run in runs]
        errors["seconds"] = statistics.median(pairs)
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
        for name, own in cases.items()
        for key, error in own["errors"].items()
    }
    results = {"command": "python benchmarks/plan.py", "cases": cases, "claims": claims}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
