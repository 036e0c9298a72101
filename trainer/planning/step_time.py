"""How long a training step takes: arithmetic, the optimizer's memory traffic, and messages.

Legend: B batch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from model.heads.layout import Head, HeadSelection
from model.network import MultiTaskNetwork
from trainer.config.optim import OptimSection
from trainer.engines.optim import build_optimizer
from trainer.planning.step_cost import autocast, empty_batch, step_cost
from trainer.planning.traffic import Traffic

NODE_LINK = 450.0  # GB/s through a ring of GPUs in one node (NVLink)
NETWORK_LINK = 12.5  # GB/s between nodes (one adapter of 100 Gbit/s)
HOST_BANDWIDTH = 20.0  # GB/s between device and host, and of the optimizer's step there
_ADAM_BYTES = 28  # that Adam reads and writes for every number: weight, gradient, two moments
_BACKWARD = 2 / 3  # of the arithmetic, during which gradients can be sent
_OVERLAPPING = ("ddp", "fsdp2")  # DeepSpeed sums gradients when its buffer is full: at the end
_REPEATS, _MOST_SECONDS = 5, 2.0


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        arithmetic: Forward, backward and the optimizer.
        messages: That are sent while nothing is computed.
    """

    arithmetic: float
    messages: float

    @property
    def total(self) -> float:
        """Seconds from one step to the next."""
        return self.arithmetic + self.messages


def step_time(
    engine: str, arithmetic: float, sent: Traffic, processes: int, link: float
) -> StepTime:
    """The time of a step of P processes.

    DDP and FSDP2 send gradients while backward computes those of earlier layers, and FSDP2 gathers
    weights ahead of their use; what takes longer than that is waited for. ZeRO sends all that it
    has to say between backward and step, and after it.

    Args:
        engine: As `engine_memory` takes it.
        arithmetic: Seconds.
        sent: In the step.
        link: GB/s through the slowest part of the ring.
    """
    seconds = sent.sent(processes) / (link * 1e9)
    hidden = arithmetic * (1.0 if engine == "fsdp2" else _BACKWARD)
    if engine in _OVERLAPPING:
        seconds = max(0.0, seconds - hidden)
    return StepTime(arithmetic, seconds)


def offload_seconds(weights: int, processes: int) -> float:
    """What the update of the moments on the host adds to a step, for W bytes over P processes."""
    share = weights / processes
    moved = 2 * share + _ADAM_BYTES / 4 * share  # gradients down and weights up, then the update
    return moved / (HOST_BANDWIDTH * 1e9)


@dataclass(frozen=True)
class MeasuredTime:
    """Seconds of forward and backward of a micro-batch, and of an update of all weights."""

    micro_batch: float
    update: float


def measure_time(
    network: MultiTaskNetwork,
    heads: Sequence[Head],
    micro_batch: int,
    precision: str,
    section: OptimSection,
    device: torch.device,
) -> MeasuredTime:
    """Make real passes and updates on this device.

    The batch is made smaller where it would take more than two seconds, and the time is taken to
    grow with the number of operations from there.

    Args:
        network: May be without storage; the weights are made up.
    """
    real = MultiTaskNetwork.from_config(network.config()).to(device)
    real.activation_checkpointing = network.activation_checkpointing
    selection, size, growing = real.select(heads), 1, True
    while growing:
        seconds = _pass_seconds(real, selection, size, precision)
        growing = size < micro_batch and 4 * seconds < _MOST_SECONDS
        size = min(micro_batch, 4 * size) if growing else size
    passes = [_pass_seconds(real, selection, size, precision) for _ in range(_REPEATS)]
    ratio = 1.0
    if size < micro_batch:
        flops = [step_cost(network, heads, n, precision).flops for n in (micro_batch, size)]
        ratio = flops[0] / flops[1]
    optimizer = build_optimizer(real, section)
    updates = [_timed(optimizer.step, device) for _ in range(_REPEATS)]
    return MeasuredTime(ratio * statistics.median(passes), statistics.median(updates[1:]))


def _pass_seconds(
    network: MultiTaskNetwork, selection: HeadSelection, size: int, precision: str
) -> float:
    device = network.image_mean.device
    shape = (len(network.image_mean), *network.image_size)
    batch = empty_batch(network.tasks, size, shape).to(device)
    network.zero_grad()

    def make_pass() -> None:
        targets = network.labels.targets(batch.scalars, batch.dense, batch.valid_rows)
        with autocast(precision, device.type):
            losses = network(batch.images, selection, targets)["losses"]
        losses.sum().backward()

    return _timed(make_pass, device)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
