"""A stage of a planned run: what its network needs under every engine, and what would help.

Legend: N tasks, K branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.heads.layout import Head
from model.network import MultiTaskNetwork
from trainer.config.config import Config
from trainer.planning.memory import ENGINES, EngineMemory, NetworkBytes, engine_memory
from trainer.planning.step_cost import StepCost, step_cost
from trainer.planning.step_time import (
    NETWORK_LINK,
    NODE_LINK,
    MeasuredTime,
    StepTime,
    measure_time,
    offload_seconds,
    step_time,
)
from trainer.planning.traffic import traffic

HEADROOM = 0.1  # of a GPU's memory: its context, workspaces of kernels, what is fragmented
GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """What a run is planned for.

    Attributes:
        gpus: Processes, one for each.
        memory: Of a GPU, in GiB.
        gpus_per_node: That share the fast link.
        tflops: Sustained; None measures on this machine's device.
        link: GB/s through the slowest part of the ring; None takes a usual one.
    """

    gpus: int
    memory: float
    gpus_per_node: int = 8
    tflops: float | None = None
    link: float | None = None

    @property
    def ring(self) -> float:
        """GB/s through the slowest part of the ring."""
        inside = self.gpus <= self.gpus_per_node
        return self.link or (NODE_LINK if inside else NETWORK_LINK)

    @property
    def usable(self) -> float:
        """Bytes of a GPU that may be planned for."""
        return (1 - HEADROOM) * self.memory * GIB


@dataclass(frozen=True)
class Stage:
    """The run before or after its heads are pruned.

    Attributes:
        heads: Heads of the network.
        computed: Heads that a step computes.
        branches: Branches of the network.
        parameters: Of the network.
        cost: Of a micro-batch.
        memory: Of a rank, by engine.
        time: Of a step, by engine.
        epoch: Seconds of an epoch, by engine; None where its length is not known.
    """

    heads: int
    computed: int
    branches: int
    parameters: int
    cost: StepCost
    memory: dict[str, EngineMemory]
    time: dict[str, StepTime]
    epoch: dict[str, float | None]


@dataclass(frozen=True)
class Planner:
    """Plans the stages of one run."""

    config: Config
    machine: Machine
    micro_batch: int
    precision: str
    samples: int | None

    def stage(
        self, network: MultiTaskNetwork, computed: Sequence[Head], *, gradient_statistics: bool
    ) -> Stage:
        """What a network needs of which so many heads are computed."""
        cost = step_cost(
            network,
            computed,
            self.micro_batch,
            self.precision,
            gradient_statistics=gradient_statistics,
            device="cuda",
        )
        times = self._times(network, computed, cost)
        steps = None if self.samples is None else self.samples // self.config.data.global_batch
        return Stage(
            len(network.heads),
            len(computed),
            network.num_branches,
            sum(parameter.numel() for parameter in network.parameters()),
            cost,
            self._memory(network, cost, self.config.optim.gradient_accumulation_steps),
            times,
            {e: None if steps is None else steps * own.total for e, own in times.items()},
        )

    def _memory(
        self, network: MultiTaskNetwork, cost: StepCost, accumulation: int
    ) -> dict[str, EngineMemory]:
        sizes = NetworkBytes.of(network, self.precision)
        return {e: engine_memory(e, sizes, cost, self.machine.gpus, accumulation) for e in ENGINES}

    def _times(
        self, network: MultiTaskNetwork, computed: Sequence[Head], cost: StepCost
    ) -> dict[str, StepTime]:
        gpus, accumulation = self.machine.gpus, self.config.optim.gradient_accumulation_steps
        if self.machine.tflops is not None:
            own = MeasuredTime(cost.flops / (self.machine.tflops * 1e12), 0.0)
        else:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            section = self.config.optim
            own = measure_time(network, computed, self.micro_batch, self.precision, section, device)
        low = self.precision != "fp32"
        times = {}
        for engine in ENGINES:
            sharded = engine != "ddp"
            arithmetic = accumulation * own.micro_batch + own.update / (gpus if sharded else 1)
            if engine == "zero3_offload":
                weights = NetworkBytes.of(network, self.precision).weights
                arithmetic += offload_seconds(weights, gpus)
            sent = traffic(engine.removesuffix("_offload"), network, accumulation, bf16=low)
            times[engine] = step_time(engine, arithmetic, sent, gpus, self.machine.ring)
        return times

    def advice(
        self, network: MultiTaskNetwork, computed: Sequence[Head], *, gradient_statistics: bool
    ) -> tuple[str, ...]:
        """What would make the run fit: smaller micro-batches, or activations computed twice."""
        accumulation = self.config.optim.gradient_accumulation_steps
        found = []
        for checkpoints in (False, True):
            if network.activation_checkpointing and not checkpoints:
                continue
            network.activation_checkpointing = checkpoints
            for factor in _factors(self.micro_batch):
                if factor == 1 and checkpoints == self.config.model.activation_checkpointing:
                    continue
                size = self.micro_batch // factor
                cost = step_cost(
                    network,
                    computed,
                    size,
                    self.precision,
                    gradient_statistics=gradient_statistics,
                    device="cuda",
                )
                memory = self._memory(network, cost, factor * accumulation)
                fits = [e for e in ENGINES if memory[e].total <= self.machine.usable]
                if fits:
                    keys = ["model.activation_checkpointing=true"] if checkpoints else []
                    if factor > 1:
                        keys.append(f"optim.gradient_accumulation_steps={factor * accumulation}")
                    found.append(f"{' '.join(keys)} fits with {', '.join(fits)}")
                    break
        if not found:
            found.append("not even one sample fits: more GPUs, more memory, or a smaller network")
        return tuple(found)


def _factors(number: int) -> list[int]:
    """The divisors of a number, ascending."""
    return [factor for factor in range(1, number + 1) if number % factor == 0]
