"""Count the bytes that the engines send in a step, and compare them with the formulas.

python benchmarks/communication.py

Two processes execute one step of a small network in two micro-batches with every engine. The script
counts all bytes of collective operations and writes benchmarks/results/communication.json; the exit
code is 1 if a formula disagrees with the count.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.profiler import ProfilerActivity, profile

from model.tasks.presets import PRESETS
from trainer.builders import build_network
from trainer.config.config import Config
from trainer.config.loading import parse_config
from trainer.planning.traffic import traffic

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "communication.json"
STAGES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
TYPES = {"float": 4, "double": 8, "c10::BFloat16": 2, "long int": 8}
ACCUMULATION = 2


def small_config(precision: str) -> Config:
    """Return a network with batch norm and parameters above and below ZeRO 3's threshold."""
    options = {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [32, 128],
        "depths": [1, 1],
        "layer_type": "basic",
    }
    tree = {
        "run": {"out": "unused", "steps": 1, "precision": precision},
        "data": {"shards": "unused", "image_size": [32, 32], "global_batch": 8},
        "model": {
            "branches": 2,
            "dense_widths": [16],
            "encoder": {"name": "backbone", "options": options},
        },
        "optim": {"gradient_accumulation_steps": ACCUMULATION},
    }
    return parse_config(tree, "small network")


def count(precision: str, out: Path) -> None:
    """Count the bytes of one step and write them to a file; the launcher starts this function."""
    from trainer.engines.accelerator import make_accelerator
    from trainer.engines.engine import Engine

    config, tasks = small_config(precision), PRESETS["taskonomy5"]
    accelerator = make_accelerator(config)
    engine = Engine(accelerator, build_network(config, tasks), config)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    selection = engine.module.select([(task, task % 2) for task in range(len(tasks))])

    def step() -> None:
        for _ in range(ACCUMULATION):
            with engine.accumulate():
                outputs = engine.network(images, selection)["predictions"]
                engine.backward(sum(value.square().mean() for value in outputs.values()))

    step()
    step()  # DDP arranges its buckets and DeepSpeed records its trace in the first steps
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        step()
    trace = out.with_name(f"{accelerator.process_index}.json")
    profiled.export_chrome_trace(str(trace))
    if accelerator.is_main_process:
        out.write_text(json.dumps(messages(json.loads(trace.read_text()))))
    engine.release()
    accelerator.end_training()


def messages(trace: dict[str, Any]) -> dict[str, float]:
    """Return the bytes of a trace by operation; gloo implements reduce-scatter as all-reduce."""
    num_bytes: Counter[str] = Counter()
    for event in trace["traceEvents"]:
        kind, _, name = event.get("name", "").partition(":")
        if kind == "gloo":
            arguments = event["args"]
            for shape, dtype in zip(arguments["Input Dims"], arguments["Input type"], strict=True):
                if shape:  # ignore scalars, such as norms and flags
                    num_bytes[name] += TYPES[dtype] * torch.Size(shape).numel()
    return dict(num_bytes)


def measure(stage: str, precision: str) -> dict[str, Any]:
    """Return the bytes of one engine, counted and by formula, for unsharded tensors."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port, out = probe.getsockname()[1], Path(folder) / "messages.json"
        probe.close()
        config = ROOT / "accelerate_configs" / f"{stage}_cpu.yaml"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
        script = [__file__, "--count", str(out), "--precision", precision]
        command = [sys.executable, *launcher, "--main_process_port", str(port), *script]
        on_cpu = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(command, check=True, capture_output=True, timeout=900, env=on_cpu)
        counted = json.loads(out.read_text())
    network = build_network(small_config(precision), PRESETS["taskonomy5"])
    formula = traffic(stage, network, ACCUMULATION, bf16=precision == "bf16")
    return {
        "reduced": counted["all_reduce"] + counted.get("reduce_scatter", 0),
        "gathered": 2 * counted.get("all_gather", 0),
        "formula": asdict(formula),
    }


def agrees(measured: dict[str, Any]) -> bool:
    """Return whether a formula agrees with the count, except for the padding of shards."""
    formula = measured["formula"]
    reduced = formula["all_reduce"] + formula["reduce_scatter"]
    pairs = ((measured["reduced"], reduced), (measured["gathered"], formula["all_gather"]))
    return all(abs(counted - expected) <= 0.005 * expected for counted, expected in pairs)


def main() -> int:
    """Count, compare with the formulas, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="fp32", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.count:
        count(arguments.precision, arguments.count)
        return 0
    cases = [(stage, "fp32") for stage in STAGES] + [("zero2", "bf16"), ("zero3", "bf16")]
    measured = {f"{stage} {precision}": measure(stage, precision) for stage, precision in cases}
    results = {
        "measured": measured,
        "claims": {f"{name}: formula": agrees(counted) for name, counted in measured.items()},
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(json.dumps(results["claims"], indent=1) + "\n")
    return 0 if all(results["claims"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
