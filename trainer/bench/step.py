"""Compare this project's training step with the published step and with a lower bound.

Legend: N tasks, K branches.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from model.network import MultiTaskNetwork
from trainer.bench.case import Step, StepCase, our_step, set_arithmetic_of
from trainer.bench.floor import Timer, measure_rates, timed
from trainer.bench.published import naive_step
from trainer.errors import UserError
from trainer.monitoring.flops import flop_counter
from trainer.monitoring.throughput import count_flops

Variant = Literal["ours", "naive"]

_STATUS = Path("/proc/self/status")
_MIB = 2**20
_MEMORY_STEPS = 3
# Relative difference of the first step's losses. TF32 has the mantissa of fp16, 3 bits more than
# that of bf16.
_TOLERANCE = {"fp32": 1e-4, "tf32": 4e-3, "fp16": 4e-3, "bf16": 3e-2}


def measure_step(case: StepCase, repeats: int) -> dict[str, Any]:
    """Measure the time of both steps in this process, and the memory of each in a new process.

    Products of fp32 numbers are equally exact in both: with TF32 unless the precision is fp32.

    Returns:
        Medians `ours_ms` and `naive_ms`, their `ratio`, the lower bound `floor_ms`, `over_floor`
        (`ours_ms` divided by it), `ours_peak_mb`, `naive_peak_mb`, `memory_ratio`,
        `loss_difference`, the terms of the lower bound, and the case.

    Raises:
        UserError: The losses of the two steps differ, or the precision needs a GPU.
    """
    set_arithmetic_of(case)
    peaks = {variant: _peak_of_process(case, variant) for variant in ("ours", "naive")}
    with our_step(case) as (ours, network):
        naive, _ = naive_step(case, network)
        difference = _check_losses(case, ours, naive)
        ours_ms, naive_ms = _paired(case, ours, naive, repeats)
        flops = step_flops(case, network, ours)
        weights = num_weights(case, network)
    rates = measure_rates(case.device, case.dtype)
    floor_ms = rates.floor_ms(flops, weights, optimizer=case.encoder != "none")
    return {
        "ours_ms": ours_ms,
        "naive_ms": naive_ms,
        "ratio": naive_ms / ours_ms,
        "floor_ms": floor_ms,
        "over_floor": ours_ms / floor_ms,
        "ours_peak_mb": peaks["ours"],
        "naive_peak_mb": peaks["naive"],
        "memory_ratio": peaks["ours"] / peaks["naive"],
        "loss_difference": difference,
        "matmul_gflops": rates.flops / 1e9,
        "copy_gbps": rates.traffic / 1e9,
        "flops": flops,
        "weights": weights,
        "case": asdict(case),
        "machine": _machine(case),
    }


def _check_losses(case: StepCase, ours: Step, naive: Step) -> float:
    """Return the maximum relative difference of the losses of the first step.

    Raises:
        UserError: The difference is too large, so the two steps compute different losses.
    """
    losses, published = ours(), naive()
    difference = float(((losses - published).abs() / published.abs().clamp_min(1e-3)).max())
    allowed = _TOLERANCE[case.precision]
    if not difference <= allowed:
        raise UserError(
            f"the losses of both steps differ by {difference:.2g}, allowed is {allowed:g}"
        )
    return difference


def _paired(
    case: StepCase, ours: Step, naive: Step, repeats: int, timer: Timer = timed
) -> tuple[float, float]:
    """Return the median milliseconds of both steps, measured alternately.

    A training executes only one kind of step. An untimed step of the same kind before each timed
    step brings caches and heap into the state of such a training.
    """
    times: dict[Variant, list[float]] = {"ours": [], "naive": []}
    steps: dict[Variant, Step] = {"ours": ours, "naive": naive}
    for _ in range(repeats):
        for variant, step in steps.items():
            step()
            times[variant].append(timer(step, case.device))
    return median(times["ours"]) * 1e3, median(times["naive"]) * 1e3


def num_weights(case: StepCase, network: MultiTaskNetwork) -> int:
    """Return the number of trained parameters."""
    trained = network.stacked_heads if case.encoder == "none" else network
    return sum(parameter.numel() for parameter in trained.parameters())


def step_flops(case: StepCase, network: MultiTaskNetwork, ours: Step) -> int:
    """Return the operations of the forward and backward pass."""
    if case.encoder != "none":
        return count_flops(network, network.select(network.heads), case.data())
    with flop_counter() as counter:
        ours()
    return counter.get_total_flops()


def _peak_of_process(case: StepCase, variant: Variant) -> float:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_peak_mb, case, variant).result()


def _peak_mb(case: StepCase, variant: Variant) -> float:
    """Return the peak memory of some steps in MiB, including weights and moments.

    On the CPU, subtract the memory that the process used before.
    """
    set_arithmetic_of(case)
    before = _resident("VmRSS") if case.device.type == "cpu" else 0
    if variant == "ours":
        with our_step(case) as (step, _):
            _run(step)
    else:
        _run(naive_step(case)[0])
    if case.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / _MIB
    return (_resident("VmHWM") - before) / _MIB


def _run(step: Step) -> None:
    for _ in range(_MEMORY_STEPS):
        step()


def _resident(which: str) -> int:
    """Return the resident bytes of this process, now (`VmRSS`) or at its peak (`VmHWM`).

    Raises:
        UserError: The system has no `/proc/self/status`.
    """
    if not _STATUS.is_file():
        raise UserError(f"{_STATUS} is missing: memory on the CPU can be measured on Linux only")
    lines = _STATUS.read_text().splitlines()
    (kilobytes,) = [line.split()[1] for line in lines if line.startswith(f"{which}:")]
    return int(kilobytes) * 1024


def _machine(case: StepCase) -> str:
    if case.device.type == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    return f"{threads}, {platform.machine()}, torch {torch.__version__}"
