"""The memory that one rank needs under every engine, from the sizes of a network and its step.

W is the size of all trained parameters in fp32, P the number of processes. The terms are those of
accelerate 1.15, DeepSpeed 0.19 and torch 2.13 as this trainer sets them up; `benchmarks/plan.py`
holds them against real runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from model.network import MultiTaskNetwork
from trainer.engines.accelerator import REDUCE_BUCKET
from trainer.planning.step_cost import LOW_PRECISION, StepCost
from trainer.planning.traffic import travelling_bytes

MOMENTS = 2  # of Adam


@dataclass(frozen=True)
class NetworkBytes:
    """Bytes of a network's parameters.

    Attributes:
        weights: W.
        buffers: Running statistics and constants.
        travelling: What ZeRO 3 gathers of W: some of it in lower precision.
        largest: The largest of the parts that FSDP2 gathers as one.
        held: What FSDP2 holds whole at the end of backward: two parts, but without a trunk that is
            trained all branches, because nothing tells it that a branch is done.
        low: Whether the arithmetic is in lower precision.
    """

    weights: int
    buffers: int
    travelling: int
    largest: int
    held: int
    low: bool

    @classmethod
    def of(cls, network: MultiTaskNetwork, precision: str) -> NetworkBytes:
        """The sizes of a network, which may be on the device `meta`."""

        def size(module: object) -> int:
            return sum(4 * p.numel() for p in module.parameters())  # type: ignore[attr-defined]

        low = precision in LOW_PRECISION
        branches = [size(branch) for branch in network.branches]
        trunk, stacked_heads = (
            size(network.trunk),
            [size(stack) for stack in network.stacked_heads.values()],
        )
        parts = sorted([trunk, *branches, *stacked_heads], reverse=True)
        return cls(
            weights=size(network),
            buffers=sum(b.numel() * b.element_size() for b in network.buffers()),
            travelling=int(sum(own for _, own in travelling_bytes(network, bf16=low))),
            largest=parts[0],
            held=sum(parts[:2]) if trunk else sum(branches),
            low=low,
        )


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one rank.

    Attributes:
        weights: Parameters, in every copy that stays, and the network's buffers.
        moments: Of the optimizer.
        gradients: Of the parameters.
        communication: What the engine sets aside for messages, and whole weights and gradients of
            which a rank keeps only a share.
        step: Batch, activations and temporary tensors where all of these together are most.
        host: What is kept in the memory of the computer instead.
    """

    weights: int
    moments: int
    gradients: int
    communication: int
    step: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return self.weights + self.moments + self.gradients + self.communication + self.step


def engine_memory(
    engine: str,
    sizes: NetworkBytes,
    cost: StepCost,
    processes: int,
    accumulation: int,
    bucket: int = REDUCE_BUCKET,
) -> EngineMemory:
    """What one rank needs at its peak.

    Args:
        engine: ddp (one process, where there is no other), zero1, zero2, zero3, zero3_offload or
            fsdp2.
        cost: Of one micro-batch.
        accumulation: Micro-batches of a step.
        bucket: Numbers in the buffer that DeepSpeed sums gradients in.
    """
    waiting = (accumulation - 1) * (cost.batch + cost.targets)
    found = _ENGINES[engine](sizes, cost, processes, accumulation > 1, bucket)
    weights, moments, gradients, communication, step, host = found
    return EngineMemory(
        weights + sizes.buffers, moments, gradients, communication, step + waiting, host
    )


_Terms = tuple[int, int, int, int, int, int]  # the fields of EngineMemory


def _kept_gradients(sizes: NetworkBytes, cost: StepCost, *, accumulates: bool) -> int:
    """Gradients at the peak, where a rank keeps all of them until it steps."""
    if accumulates:  # those of the micro-batches before are there all the time
        return sizes.weights
    return cost.peak_with_gradients - cost.peak


def _share(sizes: NetworkBytes, processes: int) -> int:
    return math.ceil(sizes.weights / processes)


def _ddp(sizes: NetworkBytes, cost: StepCost, processes: int, accumulates: bool, _: int) -> _Terms:
    gradients = _kept_gradients(sizes, cost, accumulates=accumulates)
    if processes > 1:  # they lie in the buckets that DDP sends, which stay from step to step
        gradients = sizes.weights
    return sizes.weights, MOMENTS * sizes.weights, gradients, 0, cost.peak, 0


def _zero1(
    sizes: NetworkBytes, cost: StepCost, processes: int, accumulates: bool, bucket: int
) -> _Terms:
    share = _share(sizes, processes)
    gradients = _kept_gradients(sizes, cost, accumulates=accumulates)
    # When backward is done the gradients are in the buffer, and copied once more to be sent.
    copy = max(0, sizes.weights - gradients - cost.peak)
    buffer = 4 * bucket * (2 if sizes.low else 1)
    return sizes.weights + share, MOMENTS * share, gradients, buffer + copy, cost.peak, 0


def _zero2(
    sizes: NetworkBytes, cost: StepCost, processes: int, accumulates: bool, bucket: int
) -> _Terms:
    share = _share(sizes, processes)
    gradients = share if accumulates else 0
    # When backward is done: sums of this micro-batch beside those of the ones before.
    copy = max(0, sizes.weights + gradients - cost.peak, 2 * share - cost.peak)
    buffer = 4 * bucket * (2 if sizes.low else 1)
    return sizes.weights + share, MOMENTS * share, gradients, buffer + copy, cost.peak, 0


def _zero3(sizes: NetworkBytes, cost: StepCost, processes: int, _: bool, bucket: int) -> _Terms:
    share = _share(sizes, processes)
    # What is gathered in lower precision needs no copy by autocast.
    step = cost.peak - min(cost.copies, sizes.weights - sizes.travelling)
    # Whole weights, and when backward is done whole gradients side by side.
    whole = sizes.travelling + max(0, sizes.travelling - step)
    buffer = (6 if sizes.low else 4) * bucket
    return 2 * share, MOMENTS * share, share, buffer + whole, step, 0


def _zero3_offload(
    sizes: NetworkBytes, cost: StepCost, processes: int, accumulates: bool, bucket: int
) -> _Terms:
    share = _share(sizes, processes)
    *_, messages, step, _ = _zero3(sizes, cost, processes, accumulates, bucket)
    # On the host weights and moments, and gradients twice: as they come, and summed.
    return share, 0, 0, messages, step, (3 + MOMENTS) * share


def _fsdp2(
    sizes: NetworkBytes, cost: StepCost, processes: int, accumulates: bool, _: int
) -> _Terms:
    share = _share(sizes, processes)
    # One part in use and the next one; when backward is done `held`, with its gradients.
    whole = max(2 * sizes.largest, 2 * sizes.held - cost.peak)
    return share, MOMENTS * share, share if accumulates else 0, whole, cost.peak, 0


_ENGINES: dict[str, Callable[[NetworkBytes, StepCost, int, bool, int], _Terms]] = {
    "ddp": _ddp,
    "zero1": _zero1,
    "zero2": _zero2,
    "zero3": _zero3,
    "zero3_offload": _zero3_offload,
    "fsdp2": _fsdp2,
}
ENGINES = tuple(_ENGINES)
