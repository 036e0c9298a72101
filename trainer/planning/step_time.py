"""Predict the time of a training step: computation, optimizer update and communication.

Legend: B batch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dmtg.memory import is_out_of_memory
from model.heads.layout import Head, HeadSelection
from model.network import MultiTaskNetwork
from trainer.config.optim import OptimSection
from trainer.engines.device import autocast
from trainer.engines.optim import build_optimizer
from trainer.errors import UserError
from trainer.planning.step_cost import empty_batch, step_cost
from trainer.planning.traffic import Traffic

NODE_LINK = 450.0  # GB/s through a ring of GPUs in one node (NVLink)
NETWORK_LINK = 12.5  # GB/s between nodes (one adapter of 100 Gbit/s)
HOST_BANDWIDTH = 20.0  # GB/s between device and host, and of the update on the host
_ADAM_BYTES = 28  # bytes that Adam reads and writes per weight: weight, gradient, two moments
_BACKWARD = 2 / 3  # fraction of the computation that is backward and can overlap with sending
_OVERLAPPING = ("ddp", "fsdp2")  # DeepSpeed reduces when its bucket is full: after backward
_REPEATS, _MAX_SECONDS = 5, 2.0


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        arithmetic: Forward pass, backward pass and update.
        messages: Communication that does not overlap with computation.
    """

    arithmetic: float
    messages: float

    @property
    def total(self) -> float:
        """The seconds of the whole step."""
        return self.arithmetic + self.messages


def step_time(
    engine: str, arithmetic: float, sent: Traffic, processes: int, link: float
) -> StepTime:
    """Return the time of a step.

    DDP and FSDP2 reduce gradients during the backward pass, and FSDP2 prefetches weights; only the
    communication that takes longer than this computation adds to the step. ZeRO communicates after
    the backward pass and after the update, without overlap.

    Args:
        engine: Engine, named as in `engine_memory`.
        arithmetic: Seconds of forward pass, backward pass and update.
        sent: Traffic of the step.
        processes: Number of processes.
        link: GB/s through the slowest link of the ring.
    """
    seconds = sent.sent(processes) / (link * 1e9)
    overlapped = arithmetic * (1.0 if engine == "fsdp2" else _BACKWARD)
    if engine in _OVERLAPPING:
        seconds = max(0.0, seconds - overlapped)
    return StepTime(arithmetic, seconds)


def offload_seconds(weights: int, processes: int) -> float:
    """Return the seconds that an update on the host adds to a step.

    Args:
        weights: Bytes of the parameters in fp32.
        processes: Number of processes, each of which updates one shard.
    """
    shard = weights / processes
    # Gradients are copied to the host and weights back; the update reads and writes on the host.
    moved = 2 * shard + _ADAM_BYTES / 4 * shard
    return moved / (HOST_BANDWIDTH * 1e9)


@dataclass(frozen=True)
class MeasuredTime:
    """The measured speed of a device.

    Attributes:
        micro_batch: Seconds of forward and backward pass of a micro-batch.
        update: Seconds of an update of all weights.
        largest: Samples of the largest pass that fitted into the device's memory; None if no pass
            ran out of memory.
    """

    micro_batch: float
    update: float
    largest: int | None = None


def measure_time(
    network: MultiTaskNetwork,
    heads: Sequence[Head],
    micro_batch: int,
    precision: str,
    section: OptimSection,
    device: torch.device,
) -> MeasuredTime:
    """Measure passes and updates of a network of the same shape on a device.

    If a pass of the micro-batch would take more than two seconds or does not fit into the device's
    memory, measure a smaller batch and multiply its time by the ratio of the operations.

    Args:
        network: Network, which may be on the device `meta`; its weights are not used.
        heads: Heads that the step computes.
        micro_batch: Number of samples B.
        precision: fp32, tf32, bf16 or fp16.
        section: Optimizer section of the configuration.
        device: Device of the measurement.

    Raises:
        UserError: Not even a pass of one sample, or the update, fits into the device's memory.
    """
    try:
        return _measure(network, heads, micro_batch, precision, section, device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    raise UserError(
        "--tflops measured: one sample and the update of the weights do not fit into the memory of "
        f"this machine's {_name(device)}; give --tflops a number"
    )


def _measure(
    network: MultiTaskNetwork,
    heads: Sequence[Head],
    micro_batch: int,
    precision: str,
    section: OptimSection,
    device: torch.device,
) -> MeasuredTime:
    copy = MultiTaskNetwork.from_config(network.config()).to(device)
    copy.activation_checkpointing = network.activation_checkpointing
    selection, size, largest = copy.select(heads), 1, None
    _pass_seconds(copy, selection, size, precision)  # a GPU loads its kernels in the first pass
    seconds = _pass_seconds(copy, selection, size, precision)
    while size < micro_batch and 4 * seconds < _MAX_SECONDS:
        try:
            seconds = _pass_seconds(copy, selection, min(micro_batch, 4 * size), precision)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            largest = size
            break
        size = min(micro_batch, 4 * size)
    passes = [_pass_seconds(copy, selection, size, precision) for _ in range(_REPEATS)]
    ratio = 1.0
    if size < micro_batch:
        flops = [step_cost(network, heads, n, precision).flops for n in (micro_batch, size)]
        ratio = flops[0] / flops[1]
    optimizer = build_optimizer(copy, section)
    updates = [_timed(optimizer.step, device) for _ in range(_REPEATS)]
    seconds = ratio * statistics.median(passes)
    return MeasuredTime(seconds, statistics.median(updates[1:]), largest)


def _name(device: torch.device) -> str:
    return "GPU" if device.type == "cuda" else "CPU"


def _pass_seconds(
    network: MultiTaskNetwork, selection: HeadSelection, size: int, precision: str
) -> float:
    device = network.image_mean.device
    shape = (len(network.image_mean), *network.image_size)
    batch = empty_batch(network.tasks, size, shape).to(device)
    network.zero_grad()

    def forward_backward() -> None:
        targets = network.labels.targets(batch.scalars, batch.dense, batch.valid_rows)
        with autocast(precision, device.type):
            losses = network(batch.images, selection, targets)["losses"]
        losses.sum().backward()

    return _timed(forward_backward, device)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    started = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
