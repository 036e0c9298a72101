"""Compute the memory of one rank under every engine from the sizes of a network and its step.

W is the size of all trained parameters in fp32, P the number of processes. The formulas describe
accelerate 1.15, DeepSpeed 0.19 and torch 2.13 as this trainer configures them;
`benchmarks/plan.py` compares them with real runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from model.network import MultiTaskNetwork
from trainer.engines.accelerator import REDUCE_BUCKET
from trainer.engines.device import LOW_PRECISION
from trainer.planning.step_cost import StepCost
from trainer.planning.traffic import travelling_bytes

MOMENTS = 2  # tensors that Adam keeps for each parameter
# Estimate of NCCL's buffers for one communicator: 16 channels, each with a ring and a tree whose
# connections take 4 MiB (protocol Simple), 4.7 MiB (LL128) and 0.5 MiB (LL).
NCCL_BUFFERS = 300 * 2**20


@dataclass(frozen=True)
class NetworkBytes:
    """Bytes of a network's parameters.

    Attributes:
        weights: W.
        buffers: Running statistics and constants.
        travelling: Bytes that ZeRO 3 gathers for W; it gathers some parameters in lower precision.
        largest: The largest module that FSDP2 gathers at once.
        held: Bytes that FSDP2 keeps gathered at the end of the backward pass: two modules, or all
            branches if the trunk has no parameters, because FSDP2 then cannot tell when the
            backward pass of a branch ends.
        low: Whether the network computes in lower precision.
    """

    weights: int
    buffers: int
    travelling: int
    largest: int
    held: int
    low: bool

    @classmethod
    def of(cls, network: MultiTaskNetwork, precision: str) -> NetworkBytes:
        """Return the sizes of a network, which may be on the device `meta`."""

        def size(module: object) -> int:
            return sum(4 * p.numel() for p in module.parameters())  # type: ignore[attr-defined]

        low = precision in LOW_PRECISION
        branches = [size(branch) for branch in network.branches]
        trunk = size(network.trunk)
        stacked_heads = [size(stack) for stack in network.stacked_heads.values()]
        modules = sorted([trunk, *branches, *stacked_heads], reverse=True)
        return cls(
            weights=size(network),
            buffers=sum(b.numel() * b.element_size() for b in network.buffers()),
            travelling=int(sum(sent for _, sent in travelling_bytes(network, bf16=low))),
            largest=modules[0],
            held=sum(modules[:2]) if trunk else sum(branches),
            low=low,
        )


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one rank.

    Attributes:
        weights: Parameters, with every permanent copy, and the network's buffers.
        moments: Moments of the optimizer.
        gradients: Gradients of the parameters.
        communication: Communication buffers, and the gathered weights and gradients of which a
            rank keeps only a shard.
        step: Batch, activations and temporary tensors at the peak of their sum.
        host: Bytes in the host's memory.
        workspaces: Estimate of cuDNN's workspaces at this peak.
        nccl: Estimate of NCCL's buffers, which torch does not allocate.
    """

    weights: int
    moments: int
    gradients: int
    communication: int
    step: int
    host: int = 0
    workspaces: int = 0
    nccl: int = 0

    @property
    def total(self) -> int:
        """The bytes on the device."""
        state = self.weights + self.moments + self.gradients
        return state + self.communication + self.step + self.workspaces + self.nccl


def engine_memory(
    engine: str,
    sizes: NetworkBytes,
    cost: StepCost,
    processes: int,
    accumulation: int,
    bucket: int = REDUCE_BUCKET,
    nccl: int = NCCL_BUFFERS,
    *,
    overlap_comm: bool = False,
) -> EngineMemory:
    """Return the memory of one rank at its peak.

    Args:
        engine: ddp (also for a single process), zero1, zero2, zero3, zero3_offload or fsdp2.
        sizes: Bytes of the network.
        cost: Cost of one micro-batch.
        processes: Number of processes P.
        accumulation: Number of micro-batches of a step.
        bucket: Number of elements in DeepSpeed's buffer for the reduction of gradients.
        nccl: Bytes of NCCL's buffers for a communicator; 0 for other libraries.
        overlap_comm: Value of `run.overlap_comm`.
    """
    if overlap_comm and engine in ("zero1", "zero2"):
        bucket *= 2  # DeepSpeed 0.19.8 fills one buffer while it reduces the other
    # DeepSpeed 0.19.8 clones the group of all processes, and both groups get a communicator.
    communicators = 0 if processes == 1 else 2 if engine.startswith("zero") else 1
    # All micro-batches of a step are loaded before its first forward pass.
    other_micro_batches = (accumulation - 1) * (cost.batch + cost.targets)
    terms = _ENGINES[engine](sizes, cost, processes, accumulation > 1, bucket)
    weights, moments, gradients, communication, step, host = terms
    return EngineMemory(
        weights + sizes.buffers,
        moments,
        gradients,
        communication,
        step + other_micro_batches,
        host,
        cost.workspaces,
        communicators * nccl,
    )


_Terms = tuple[int, int, int, int, int, int]  # the first fields of EngineMemory, in their order


def _kept_gradients(sizes: NetworkBytes, cost: StepCost, *, accumulates: bool) -> int:
    """Return the gradients at the peak of an engine that keeps all gradients until the update."""
    if accumulates:  # the gradients of earlier micro-batches exist during every later one
        return sizes.weights
    return cost.peak_with_gradients - cost.peak


def _shard_bytes(sizes: NetworkBytes, processes: int) -> int:
    """Return the bytes of one rank's shard of W."""
    return math.ceil(sizes.weights / processes)


def _ddp(sizes: NetworkBytes, cost: StepCost, processes: int, accumulates: bool, _: int) -> _Terms:
    gradients = _kept_gradients(sizes, cost, accumulates=accumulates)
    if processes > 1:  # gradients are views of the buckets, which DDP keeps between steps
        gradients = sizes.weights
    return sizes.weights, MOMENTS * sizes.weights, gradients, 0, cost.peak, 0


def _zero1(
    sizes: NetworkBytes, cost: StepCost, processes: int, accumulates: bool, bucket: int
) -> _Terms:
    shard = _shard_bytes(sizes, processes)
    gradients = _kept_gradients(sizes, cost, accumulates=accumulates)
    # After the backward pass DeepSpeed copies all gradients once more for the reduction.
    copy = max(0, sizes.weights - gradients - cost.peak)
    buffer = 4 * bucket * (2 if sizes.low else 1)
    return sizes.weights + shard, MOMENTS * shard, gradients, buffer + copy, cost.peak, 0


def _zero2(
    sizes: NetworkBytes, cost: StepCost, processes: int, accumulates: bool, bucket: int
) -> _Terms:
    shard = _shard_bytes(sizes, processes)
    gradients = shard if accumulates else 0
    # After the backward pass the sums of this micro-batch exist together with the earlier sums.
    copy = max(0, sizes.weights + gradients - cost.peak, 2 * shard - cost.peak)
    buffer = 4 * bucket * (2 if sizes.low else 1)
    return sizes.weights + shard, MOMENTS * shard, gradients, buffer + copy, cost.peak, 0


def _zero3(sizes: NetworkBytes, cost: StepCost, processes: int, _: bool, bucket: int) -> _Terms:
    shard = _shard_bytes(sizes, processes)
    # Autocast makes no copy of a parameter that is gathered in lower precision.
    step = cost.peak - min(cost.copies, sizes.weights - sizes.travelling)
    # The gathered weights; after the backward pass also all gradients, in the freed step memory.
    gathered = sizes.travelling + max(0, sizes.travelling - step)
    buffer = (6 if sizes.low else 4) * bucket
    return 2 * shard, MOMENTS * shard, shard, buffer + gathered, step, 0


def _zero3_offload(
    sizes: NetworkBytes, cost: StepCost, processes: int, accumulates: bool, bucket: int
) -> _Terms:
    shard = _shard_bytes(sizes, processes)
    *_, communication, step, _ = _zero3(sizes, cost, processes, accumulates, bucket)
    # The host holds weights, moments, the gradients of a micro-batch and their sum.
    return shard, 0, 0, communication, step, (3 + MOMENTS) * shard


def _fsdp2(
    sizes: NetworkBytes, cost: StepCost, processes: int, accumulates: bool, _: int
) -> _Terms:
    shard = _shard_bytes(sizes, processes)
    # The module in use and the prefetched one; after the backward pass `held` and its gradients.
    gathered = max(2 * sizes.largest, 2 * sizes.held - cost.peak)
    return shard, MOMENTS * shard, shard if accumulates else 0, gathered, cost.peak, 0


_ENGINES: dict[str, Callable[[NetworkBytes, StepCost, int, bool, int], _Terms]] = {
    "ddp": _ddp,
    "zero1": _zero1,
    "zero2": _zero2,
    "zero3": _zero3,
    "zero3_offload": _zero3_offload,
    "fsdp2": _fsdp2,
}
ENGINES = tuple(_ENGINES)
