"""Predict memory and time of a run before or after pruning, and what would make it fit.

Legend: N tasks, K branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.heads.layout import Head
from model.network import MultiTaskNetwork
from trainer.config.config import Config
from trainer.engines.device import LOW_PRECISION, set_arithmetic
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

HEADROOM = 0.1  # fraction of GPU memory for CUDA context, cuBLAS workspaces, fragmentation
GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """The GPUs for which a run is planned.

    Attributes:
        gpus: Number of GPUs; each has one process.
        memory: Memory of a GPU in GiB.
        gpus_per_node: GPUs connected by the fast link of a node.
        tflops: Sustained TFLOP/s; None measures on this machine's device.
        link: GB/s through the slowest link of the ring; None uses a typical value.
    """

    gpus: int
    memory: float
    gpus_per_node: int = 8
    tflops: float | None = None
    link: float | None = None

    @property
    def ring(self) -> float:
        """GB/s through the slowest link of the ring."""
        one_node = self.gpus <= self.gpus_per_node
        return self.link or (NODE_LINK if one_node else NETWORK_LINK)

    @property
    def usable(self) -> float:
        """Bytes of a GPU without the headroom."""
        return (1 - HEADROOM) * self.memory * GIB


@dataclass(frozen=True)
class Stage:
    """The run before or after its heads are pruned.

    Attributes:
        heads: Number of heads of the network.
        computed: Number of heads that a step computes.
        branches: Number of branches of the network.
        parameters: Number of parameters of the network.
        cost: Cost of a micro-batch.
        memory: Memory of a rank, by engine.
        time: Time of a step, by engine.
        epoch: Seconds of an epoch, by engine; None if its length is unknown.
        measured: What was measured on this machine; None if the speed was given.
    """

    heads: int
    computed: int
    branches: int
    parameters: int
    cost: StepCost
    memory: dict[str, EngineMemory]
    time: dict[str, StepTime]
    epoch: dict[str, float | None]
    measured: MeasuredTime | None = None


@dataclass(frozen=True)
class Planner:
    """Predicts the stages of one run."""

    config: Config
    machine: Machine
    micro_batch: int
    precision: str
    samples: int | None

    def stage(
        self, network: MultiTaskNetwork, computed: Sequence[Head], *, gradient_statistics: bool
    ) -> Stage:
        """Return the stage of a network whose step computes the given heads."""
        cost = step_cost(
            network,
            computed,
            self.micro_batch,
            self.precision,
            gradient_statistics=gradient_statistics,
            device="cuda",
        )
        measured = self._measure(network, computed) if self.machine.tflops is None else None
        times = self._times(network, cost, measured)
        steps = None if self.samples is None else self.samples // self.config.data.global_batch
        return Stage(
            len(network.heads),
            len(computed),
            network.num_branches,
            sum(parameter.numel() for parameter in network.parameters()),
            cost,
            self._memory(network, cost, self.config.optim.gradient_accumulation_steps),
            times,
            {e: None if steps is None else steps * time.total for e, time in times.items()},
            measured,
        )

    def _memory(
        self, network: MultiTaskNetwork, cost: StepCost, accumulation: int
    ) -> dict[str, EngineMemory]:
        sizes, gpus = NetworkBytes.of(network, self.precision), self.machine.gpus
        overlap_comm = bool(self.config.run.overlap_comm)
        return {
            engine: engine_memory(
                engine, sizes, cost, gpus, accumulation, overlap_comm=overlap_comm
            )
            for engine in ENGINES
        }

    def _measure(self, network: MultiTaskNetwork, computed: Sequence[Head]) -> MeasuredTime:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cuda":
            run = self.config.run.model_copy(update={"precision": self.precision})
            set_arithmetic(self.config.model_copy(update={"run": run}))
        return measure_time(
            network, computed, self.micro_batch, self.precision, self.config.optim, device
        )

    def _times(
        self, network: MultiTaskNetwork, cost: StepCost, measured: MeasuredTime | None
    ) -> dict[str, StepTime]:
        gpus, accumulation = self.machine.gpus, self.config.optim.gradient_accumulation_steps
        if measured is None:
            assert self.machine.tflops is not None
            measured = MeasuredTime(cost.flops / (self.machine.tflops * 1e12), 0.0)
        low = self.precision in LOW_PRECISION
        times = {}
        for engine in ENGINES:
            num_shards = 1 if engine == "ddp" else gpus  # each rank updates one shard
            arithmetic = accumulation * measured.micro_batch + measured.update / num_shards
            if engine == "zero3_offload":
                weights = NetworkBytes.of(network, self.precision).weights
                arithmetic += offload_seconds(weights, gpus)
            sent = traffic(engine.removesuffix("_offload"), network, accumulation, bf16=low)
            times[engine] = step_time(engine, arithmetic, sent, gpus, self.machine.ring)
        return times

    def advice(
        self, network: MultiTaskNetwork, computed: Sequence[Head], *, gradient_statistics: bool
    ) -> tuple[str, ...]:
        """Return the smallest changes that make the run fit: micro-batch size, checkpointing."""
        accumulation = self.config.optim.gradient_accumulation_steps
        advice = []
        for recompute in (False, True):
            if network.activation_checkpointing and not recompute:
                continue
            network.activation_checkpointing = recompute
            for factor in _factors(self.micro_batch):
                if factor == 1 and recompute == self.config.model.activation_checkpointing:
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
                    keys = ["model.activation_checkpointing=true"] if recompute else []
                    if factor > 1:
                        keys.append(f"optim.gradient_accumulation_steps={factor * accumulation}")
                    advice.append(f"{' '.join(keys)} fits with {', '.join(fits)}")
                    break
        if not advice:
            advice.append("not even one sample fits: more GPUs, more memory, or a smaller network")
        return tuple(advice)


def _factors(number: int) -> list[int]:
    """Return the divisors of a number in ascending order."""
    return [factor for factor in range(1, number + 1) if number % factor == 0]
