"""What an engine sends in a step: bytes of weights and gradients, in closed form.

`benchmarks/communication.py` counts the same in real runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

PERSISTENT = 100_000  # ZeRO 3 gathers smaller parameters once a step, and keeps them until then
LOW_PRECISION = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # what ZeRO sends of them in bf16


@dataclass(frozen=True)
class Traffic:
    """Bytes of the whole tensors that a step hands to collectives, by operation."""

    all_reduce: float = 0.0
    reduce_scatter: float = 0.0
    all_gather: float = 0.0

    def sent(self, processes: int) -> float:
        """Bytes that each process sends, by the ring algorithms."""
        total = 2 * self.all_reduce + self.reduce_scatter + self.all_gather
        return total * (processes - 1) / processes


def travelling_bytes(network: nn.Module, *, bf16: bool) -> list[tuple[float, float]]:
    """Of every parameter its bytes in fp32, and those that ZeRO sends of it."""
    low = {
        id(p)
        for module in network.modules()
        if type(module) in LOW_PRECISION
        for p in module.parameters(recurse=False)
    }
    sizes = [(id(p), 4.0 * p.numel()) for p in network.parameters()]
    return [(size, size / 2 if bf16 and key in low else size) for key, size in sizes]


def traffic(stage: str, network: nn.Module, accumulation: int, *, bf16: bool) -> Traffic:
    """What a step sends of weights and gradients.

    ZeRO 1 and 2 sum gradients with an all-reduce: DeepSpeed cuts them only afterwards. ZeRO 3 keeps
    what it has gathered from forward to backward in networks of less than 1e9 parameters.

    Args:
        stage: ddp, zero1, zero2, zero3 or fsdp2.
        network: Whose parameters are trained.
        accumulation: Micro-batches of a step.
        bf16: Whether the arithmetic is in bf16 (or fp16).
    """
    sizes = travelling_bytes(network, bf16=bf16)
    weights = sum(size for size, _ in sizes)
    gradients = sum(own for _, own in sizes)
    if stage == "ddp":
        return Traffic(all_reduce=weights)
    if stage == "fsdp2":
        return Traffic(reduce_scatter=weights, all_gather=2 * accumulation * weights)
    if stage == "zero3":
        gathered = sum(accumulation * own if size > 4 * PERSISTENT else size for size, own in sizes)
        return Traffic(reduce_scatter=accumulation * gradients, all_gather=gathered)
    times = accumulation if stage == "zero2" else 1
    return Traffic(all_reduce=times * gradients, all_gather=weights)
