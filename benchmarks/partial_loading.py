"""Measure what `load_pruned(path, tasks=[...])` saves: bytes from the disk, and seconds.

python benchmarks/partial_loading.py [--quick] [--out benchmarks/results/partial_loading.json]

An exported model of 200 tasks on 8 branches of a ResNet-18 behind a shared stem is written once;
then every case is loaded in a process of its own, three times, each after the file has been dropped
from the page cache (`posix_fadvise`). Bytes are those that Linux counts for the process as read
from the disk (`/proc/self/io`), which includes what it reads ahead; they are zero on a file system
in memory.

Legend: N tasks, K branches.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

OUT = Path(__file__).resolve().parent / "results" / "partial_loading.json"
RUNS = Path(__file__).resolve().parent.parent / "runs"  # which git ignores
TASKS, BRANCHES = 200, 8
CASES = {"all": None, "4 groups": 4, "1 group": 1, "1 task": 0}  # groups; 0 is a single task
REPEATS = 3
RESNET18, SMALL = [64, 128, 256, 512], [8, 16, 32, 64]  # channels of the stages


def write_model(path: Path, hidden_sizes: list[int]) -> None:
    """Write an exported model whose task n is on branch n modulo K."""
    import torch

    from model.bundle import save_bundle
    from model.encoders import build_encoder
    from model.network import MultiTaskNetwork
    from model.tasks.spec import TaskSpec

    torch.manual_seed(0)
    options = {
        "model_type": "resnet", "embedding_size": hidden_sizes[0], "hidden_sizes": hidden_sizes,
        "depths": [2, 2, 2, 2], "layer_type": "basic",
    }  # fmt: skip
    encoder = build_encoder(
        "backbone", BRANCHES, image_size=(128, 128), trunk_depth=1, options=options
    )
    tasks = [TaskSpec(f"task {number:03}", "binary") for number in range(TASKS)]
    heads = [(number, number % BRANCHES) for number in range(TASKS)]
    network = MultiTaskNetwork(tasks, encoder, (128, 128), heads=heads)
    save_bundle(path, network, {})


def names(groups: int | None) -> list[str] | None:
    """Return the names of the tasks of a case."""
    if groups is None:
        return None
    numbers = [0] if groups == 0 else [n for n in range(TASKS) if n % BRANCHES < groups]
    return [f"task {number:03}" for number in numbers]


def measure(path: Path, small: Path, groups: int | None, repeats: int) -> dict[str, Any]:
    """Load a case in this process, after a small model of the same kind has loaded the code."""
    from model.bundle import load_pruned

    load_pruned(small, tasks=names(groups))
    rows = []
    for _ in range(repeats):
        _drop_from_cache(path)
        read, start, cpu = _bytes_read(), time.perf_counter(), time.process_time()
        model = load_pruned(path, tasks=names(groups))
        seconds = time.perf_counter() - start
        rows.append((seconds, time.process_time() - cpu, _bytes_read() - read))
        tensors = model.state_dict().values()
        facts = {
            "tasks": len(model.tasks),
            "branches": model.network.num_branches,
            "tensor_bytes": sum(tensor.nbytes for tensor in tensors),
        }
        del model, tensors
    medians = (round(median(values), 3) for values in zip(*rows, strict=True))
    keys = ("seconds", "cpu_seconds", "disk_bytes")
    return {**dict(zip(keys, medians, strict=True)), **facts}


def _drop_from_cache(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def in_a_process(path: Path, small: Path, case: str, repeats: int) -> dict[str, Any]:
    """Measure a case in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(path), str(small), case, str(repeats)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Write the table and the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model, measured once")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        path, small, case, repeats = arguments.measure
        print(json.dumps(measure(Path(path), Path(small), CASES[case], int(repeats))))
        return
    # Not in /tmp, which is often in memory.
    RUNS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RUNS) as folder:
        path, small = Path(folder) / "model.safetensors", Path(folder) / "small.safetensors"
        write_model(small, SMALL)
        write_model(path, SMALL if arguments.quick else RESNET18)
        size = path.stat().st_size
        repeats = 1 if arguments.quick else REPEATS
        rows = {case: in_a_process(path, small, case, repeats) for case in CASES}
    print(f"one file of {size / 1e6:.1f} MB")
    print("    case  tasks  branches  MB of weights  MB from disk  seconds  CPU s")
    for case, row in rows.items():
        print(
            f"{case:>8} {row['tasks']:6.0f} {row['branches']:9.0f}"
            f" {row['tensor_bytes'] / 1e6:14.1f} {row['disk_bytes'] / 1e6:13.1f}"
            f" {row['seconds']:8.2f} {row['cpu_seconds']:6.2f}"
        )
    if arguments.quick:
        return
    arguments.out.write_text(
        json.dumps(
            {
                "file_bytes": size, "machine": platform.machine(), "cores": os.cpu_count(),
                "repeats": REPEATS, "cases": rows,
            },
            indent=1,
        ) + "\n"
    )  # fmt: skip


if __name__ == "__main__":
    main()
