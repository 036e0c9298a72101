"""The one adapter between the loop and accelerate: one process, DDP, FSDP2, ZeRO 1, 2, 3."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Collection, Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from model.network import MultiTaskNetwork
from model.sync_batch_norm import synchronise
from trainer.config.config import Config
from trainer.engines.fsdp import shard, shards, whole
from trainer.engines.loss_scale import LossScale
from trainer.engines.optim import base_optimizer, build_optimizer
from trainer.engines.running_statistics import RunningStatistics


def _forget_zero3() -> None:
    """Drop the references to a network that DeepSpeed keeps for the life of the process.

    DeepSpeed 0.19.8 puts every prepared network on a stack and never takes it off. The cache of
    `__params_to_release`, inside a decorator, has no limit, and its keys hold all modules.
    """
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    cached = vars(PartitionedParameterCoordinator)[
        "_PartitionedParameterCoordinator__params_to_release"
    ]
    for function in (cached, *inspect.getclosurevars(cached).nonlocals.values()):
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def _can_synchronise(accelerator: Accelerator) -> bool:
    """Return whether batch statistics are those of all ranks: on GPUs, whose links are fast."""
    return accelerator.num_processes > 1 and accelerator.device.type == "cuda"


def _keeps_layout(accelerator: Accelerator) -> bool:
    """Return whether weights keep their layout in memory there: ZeRO flattens them.

    FSDP2 of torch 2.13 shards contiguous parameters only. On the CPU another layout would change
    the order of sums, and with it results.
    """
    plain = accelerator.distributed_type != DistributedType.DEEPSPEED and not shards()
    return plain and accelerator.device.type == "cuda"


def _store_channels_last(network: nn.Module) -> None:
    """Store the weights of convolutions in the layout of the maps.

    Otherwise torch copies each weight into it in every pass, and its gradient back.
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.weight.data = layer.weight.data.clone(memory_format=torch.channels_last)


class Engine:
    """A network and its optimizer, prepared for training by accelerate.

    Args:
        accelerator: Of the run.
        module: The network; parameters without gradients are not trained.
        config: Of the run.
        undecayed: As `build_optimizer` takes it.

    Attributes:
        network: What a step calls; forward goes through DDP's or DeepSpeed's hooks.
        module: The plain `MultiTaskNetwork` inside it.
        sharded: Whether FSDP2 shards its parameters.
        scaler: The loss scaler of fp16; None in other precisions.
        statistics: Of the normalisation layers.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: MultiTaskNetwork,
        config: Config,
        undecayed: Collection[str] = (),
    ) -> None:
        self.accelerator = accelerator
        self._clip = config.optim.max_grad_norm
        self._skips = config.optim.skip_nonfinite > 0
        module.activation_checkpointing = config.model.activation_checkpointing
        self._records_graphs = config.model.compile_mode is not None
        if config.model.compile:
            module.compile_parts(config.model.compile_mode)
        # Elsewhere the statistics are averaged, see `average_buffers`.
        if config.model.sync_batchnorm == "auto" and _can_synchronise(accelerator):
            synchronise(module)
        if config.model.channels_last == "auto" and _keeps_layout(accelerator):
            _store_channels_last(module)
        self.module = module
        self.sharded = shards() and accelerator.num_processes > 1
        if self.sharded:
            # `evaluation_mode=True` avoids the DDP wrapper.
            self.network = accelerator.prepare_model(module, evaluation_mode=True)
            shard(self.network, accelerator.device.type)
        optimizer = build_optimizer(module, config.optim, undecayed)
        self._skipped = False
        self._base_lr = [group["lr"] for group in optimizer.param_groups]
        if self.sharded:
            self.optimizer = accelerator.prepare(optimizer)
        else:
            self.network, self.optimizer = accelerator.prepare(module, optimizer)
        self.scaler = self._build_scaler()
        self._scale: float | None = None  # of the last step
        self.statistics = RunningStatistics(self.module)

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's ZeRO stage; 0 without DeepSpeed."""
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            return 0
        return self.network.zero_optimization_stage()

    def _build_scaler(self) -> torch.amp.GradScaler | LossScale | None:
        if not self.zero_stage:
            return self.accelerator.scaler
        optimizer = self.network.optimizer
        return LossScale(optimizer) if optimizer.torch_autocast_gradscaler is not None else None

    def loss_scale(self) -> dict[str, float]:
        """Return the state of the fp16 loss scaler; empty in other precisions."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def set_learning_rate(self, factor: float) -> None:
        """Scale every group's learning rate by `factor`."""
        for group, lr in zip(
            base_optimizer(self.optimizer).param_groups, self._base_lr, strict=True
        ):
            group["lr"] = lr * factor

    @contextlib.contextmanager
    def accumulate(self) -> Iterator[None]:
        """Context of one micro-batch; on the last one gradients are reduced and weights updated."""
        if self._records_graphs and self.accelerator.sync_gradients:  # a step begins
            # Else the first backward pass ends a step (torch 2.13, `_inductor/cudagraph_trees.py`),
            # and the next forward pass, of a branch that is computed again or of the next
            # micro-batch, may overwrite gradients.
            torch.compiler.cudagraph_mark_step_begin()
        with self.accelerator.accumulate(self.network):
            if self.sharded:
                self.network.set_requires_gradient_sync(self.accelerator.sync_gradients)
            yield

    def backward(self, objective: Tensor) -> None:
        """Back-propagate, and update the weights if this is the step's last micro-batch.

        The engine divides by the number of micro-batches and averages over ranks.
        """
        if self._skips and self.scaler is not None and self._scale is None:
            self._scale = self.scaler.get_scale()
        self.accelerator.backward(objective)  # under DeepSpeed it clips and steps, too
        if self.accelerator.sync_gradients:
            self._end_zero_step() if self.zero_stage else self._step()

    def _end_zero_step(self) -> None:
        if isinstance(self.scaler, LossScale):
            self.scaler.update()
        self._skipped = bool(self.network.optimizer.overflow)

    def _step(self) -> None:
        finite = True
        if self._clip is not None or self._skips:
            limit = math.inf if self._clip is None else self._clip
            norm = self.accelerator.clip_grad_norm_(self.network.parameters(), limit)
            finite = not self._skips or self.scaler is not None or bool(whole(norm).isfinite())
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self._skipped = not finite or self._scale_fell()

    def _scale_fell(self) -> bool:
        """Return whether the fp16 loss scaler has skipped the step.

        accelerate 1.15 asks whether `optimizer.step` was called, but a fused optimizer is called
        in any case, and skips the update on the device. The host must wait to know, so that only
        `optim.skip_nonfinite` looks at the scale.
        """
        if self.scaler is None or not self._skips:
            return False
        before, self._scale = self._scale, self.scaler.get_scale()
        return before is not None and self._scale < before

    @property
    def step_was_skipped(self) -> bool:
        """Whether the last step did not update weights and moments; the same on every rank.

        ZeRO skips a step whose gradient is not finite. In other engines it is seen only with
        `optim.skip_nonfinite`, which skips such steps; in fp16 the loss scaler skips them anyway.
        """
        return self._skipped

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, bitwise equal on each of them."""
        return self.accelerator.reduce(tensor, reduction="sum")

    def average_buffers(self) -> None:
        """Average the running statistics of the layers in training mode over the ranks."""
        if self.accelerator.num_processes > 1:
            self.statistics.average(self.accelerator)

    def release(self) -> None:
        """Free network and optimizer, so that another engine can be prepared.

        Nothing of them is reachable afterwards, unless the caller holds it. DDP must be gone before
        the process group ends: its destructor would wait for a thread of the group while it holds
        the interpreter's lock.
        """
        if self.network is None:
            return
        uses_zero3 = self.zero_stage == 3
        self.module = self.network = self.optimizer = None  # type: ignore[assignment]
        self.scaler = self.statistics = None  # type: ignore[assignment]
        if self._records_graphs:
            torch.compiler.reset()  # CUDA graphs keep activations and gradients of all parts
        self.accelerator.free_memory()  # collects garbage before it drops its own references
        if uses_zero3:
            _forget_zero3()
        # accelerate's patched `forward` and the network refer to each other.
        clear_device_cache(garbage_collection=True)
