"""Compute the bytes of weights and gradients that an engine sends in a step, in closed form.

`benchmarks/communication.py` counts the same bytes in real runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

PERSISTENT = 100_000  # elements; ZeRO 3 gathers smaller parameters only once per step
# Modules whose parameters ZeRO sends in bf16.
LOW_PRECISION = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Traffic:
    """Bytes of the unsharded tensors in the collective operations of a step, by operation."""

    all_reduce: float = 0.0
    reduce_scatter: float = 0.0
    all_gather: float = 0.0

    def sent(self, processes: int) -> float:
        """Return the bytes that each process sends with ring algorithms."""
        total = 2 * self.all_reduce + self.reduce_scatter + self.all_gather
        return total * (processes - 1) / processes


def travelling_bytes(network: nn.Module, *, bf16: bool) -> list[tuple[float, float]]:
    """Return for every parameter its bytes in fp32 and the bytes that ZeRO sends for it."""
    low = {
        id(p)
        for module in network.modules()
        if type(module) in LOW_PRECISION
        for p in module.parameters(recurse=False)
    }
    sizes = [(id(p), 4.0 * p.numel()) for p in network.parameters()]
    return [(size, size / 2 if bf16 and key in low else size) for key, size in sizes]


def traffic(stage: str, network: nn.Module, accumulation: int, *, bf16: bool) -> Traffic:
    """Return the bytes of weights and gradients that a step sends.

    ZeRO 1 and 2 reduce gradients with an all-reduce; DeepSpeed takes a rank's shard afterwards.
    ZeRO 3 keeps gathered weights from the forward to the backward pass in networks of less than
    1e9 parameters.

    Args:
        stage: ddp, zero1, zero2, zero3 or fsdp2.
        network: Network whose parameters are all trained.
        accumulation: Number of micro-batches of a step.
        bf16: Whether the network computes in bf16 or fp16.
    """
    sizes = travelling_bytes(network, bf16=bf16)
    weights = sum(size for size, _ in sizes)
    gradients = sum(sent for _, sent in sizes)
    if stage == "ddp":
        return Traffic(all_reduce=weights)
    if stage == "fsdp2":
        return Traffic(reduce_scatter=weights, all_gather=2 * accumulation * weights)
    if stage == "zero3":
        gathered = sum(
            accumulation * sent if size > 4 * PERSISTENT else size for size, sent in sizes
        )
        return Traffic(reduce_scatter=accumulation * gradients, all_gather=gathered)
    reductions = accumulation if stage == "zero2" else 1
    return Traffic(all_reduce=reductions * gradients, all_gather=weights)
