"""The devices of these tests, the launches on them, and how far their numbers may be apart."""

import json
import math
import os
from pathlib import Path

import torch
from torch import Tensor

from tests.distributed.cells import Launch

DEVICE = os.environ.get("DMTG_TEST_DEVICE", "cuda")
ON_CPU = DEVICE == "cpu"
# Largest relative difference of a loss from that of the CPU in fp32.
TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 3e-2, "fp16": 1e-2}
ON_THE_CPU = ("fp32", "bf16")  # precisions that a CPU has


def count() -> int:
    """The number of devices; two processes stand for them on the CPU."""
    return 2 if ON_CPU else torch.cuda.device_count()


def missing(*, devices: int = 1, emulated: bool = True) -> str | None:
    """Return why a test cannot run here, or None."""
    if ON_CPU:
        return None if emulated else "this can be seen on a GPU only"
    if not torch.cuda.is_available():
        return "no GPU: torch finds no CUDA device (DMTG_TEST_DEVICE=cpu tries the tests without)"
    if count() < devices:
        return f"one GPU: this needs {devices}, with a process on each"
    return None


def launch(engine: str, num_processes: int | None = None) -> Launch:
    """An engine with a process on each device, at most two of them."""
    name = f"{engine}_cpu" if ON_CPU else engine
    return Launch(name, num_processes or min(2, max(1, count())))


def records(run: Path, kind: str, last: float = math.inf) -> list[dict]:
    """The records of a kind in the metrics of a run, up to a step."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in found if record["kind"] == kind and record["step"] <= last]


def distance(found: Tensor, expected: Tensor) -> float:
    """The length of the difference of two tensors, relative to that of the second."""
    found, expected = found.float(), expected.float()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-6))


def assert_same_curve(
    run: Path, reference: Path, precision: str = "fp32", last: float = math.inf
) -> None:
    """Every loss of every step up to the last, and what was pruned, is that of the reference.

    Rounding grows with the steps: after 50 of them 1e-6 in a product can be 1e-4 in a loss.
    """
    found, expected = (records(r, "train", last) for r in (run, reference))
    assert [r["step"] for r in found] == [r["step"] for r in expected]
    for now, then in zip(found, expected, strict=True):
        assert now["losses"].keys() == then["losses"].keys()
        for task, value in then["losses"].items():
            error = abs(now["losses"][task] - value) / max(abs(value), 1e-3)
            assert error < TOLERANCE[precision], (run, now["step"], task, error)
        assert (now["heads"], now["branches"]) == (then["heads"], then["branches"])
    for kind in ("prune", "compact"):
        assert records(run, kind, last) == records(reference, kind, last)
