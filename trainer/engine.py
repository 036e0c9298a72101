"""The one adapter between the loop and accelerate: one process, DDP, DeepSpeed ZeRO 1, 2, 3."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
)
from torch import Tensor, nn

from trainer.config import Config
from trainer.errors import UserError
from trainer.optim import base_optimizer, build_optimizer

_PRECISIONS = {None: None, "fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def make_accelerator(config: Config) -> Accelerator:
    """The accelerator for whatever launched this process.

    Raises:
        UserError: several processes were started without a distributed engine, or the global
            batch does not divide into micro-batches.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    with_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    on_cpu = not torch.cuda.is_available()
    precision = _PRECISIONS[config.run.precision]
    if on_cpu and "fp16" in (precision, os.environ.get("ACCELERATE_MIXED_PRECISION")):
        raise UserError("run.precision: fp16 needs a GPU; allowed on the CPU: fp32, bf16")
    # Buffers are averaged by `average_buffers`; DDP's own broadcast would overwrite them.
    handlers: list[Any] = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    if on_cpu and world_size > 1:
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    if on_cpu and with_deepspeed:
        _use_plain_gloo()
    accelerator = Accelerator(
        cpu=on_cpu and not with_deepspeed,
        mixed_precision=precision,
        gradient_accumulation_steps=config.optim.accumulation,
        kwargs_handlers=handlers,
        step_scheduler_with_optimizer=False,
    )
    if world_size > 1 and accelerator.distributed_type == DistributedType.NO:
        raise UserError(
            f"{world_size} processes were launched but accelerate formed no group; use one of "
            "accelerate_configs/ (on CPU: ddp_cpu, zero2_cpu, zero3_cpu)"
        )
    micro_batch = _micro_batch(config, accelerator.num_processes)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _configure_deepspeed(accelerator, config, micro_batch)
    return accelerator


def _use_plain_gloo() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives when it starts on a CPU.

    The compiler runs behind a lock file; a process that is killed meanwhile leaves it locked, and
    every later start waits for it without an end.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _micro_batch(config: Config, num_processes: int) -> int:
    parts = num_processes * config.optim.accumulation
    if config.data.global_batch % parts:
        raise UserError(
            f"data.global_batch is {config.data.global_batch}; it must be a multiple of "
            f"processes x optim.accumulation = {num_processes} x {config.optim.accumulation}"
        )
    return config.data.global_batch // parts


def _configure_deepspeed(accelerator: Accelerator, config: Config, micro_batch: int) -> None:
    from transformers.integrations import unset_hf_deepspeed_config

    # Weights are drawn or read whole and sharded by `prepare`; under ZeRO 3, from_pretrained
    # would shard them at once.
    unset_hf_deepspeed_config()
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    settings["train_micro_batch_size_per_gpu"] = micro_batch
    settings["gradient_accumulation_steps"] = config.optim.accumulation
    settings["gradient_clipping"] = config.optim.clip or 0.0
    precision = accelerator.mixed_precision
    if precision != "no":
        # fp32 parameters and moments, sharded, with low-precision arithmetic: exact updates, and
        # batch normalisation works on every device (DeepSpeed's own bf16 casts the parameters).
        for section in ("bf16", "fp16"):
            settings[section] = {"enabled": False}
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[precision]
        settings["torch_autocast"] = {"enabled": True, "dtype": dtype}


class Engine:
    """A network and its optimizer, prepared for training by accelerate.

    Args:
        accelerator: Of the run.
        module: The network; what needs no gradient is not trained.
        config: Of the run.
        undecayed: As `build_optimizer` takes it.

    Attributes:
        network: What the loop calls; forward goes through DDP's or DeepSpeed's hooks.
        module: The plain `MultiTaskNetwork` inside it.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        config: Config,
        undecayed: Collection[str] = (),
    ) -> None:
        self.accelerator = accelerator
        self._clip = config.optim.clip
        self.module: Any = module
        optimizer = build_optimizer(module, config.optim, undecayed)
        self._base_lr = [group["lr"] for group in optimizer.param_groups]
        self.network, self.optimizer = accelerator.prepare(module, optimizer)

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's ZeRO stage; 0 without DeepSpeed."""
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            return 0
        return self.network.zero_optimization_stage()

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler of fp16; None in other precisions."""
        if self.zero_stage:
            return self.network.optimizer.torch_autocast_gradscaler
        return self.accelerator.scaler

    def set_learning_rate(self, factor: float) -> None:
        """Scale every group's learning rate by `factor`."""
        for group, lr in zip(
            base_optimizer(self.optimizer).param_groups, self._base_lr, strict=True
        ):
            group["lr"] = lr * factor

    def accumulate(self) -> contextlib.AbstractContextManager[None]:
        """Context of one micro-batch: gradients travel, and the step happens, on the last one."""
        return self.accelerator.accumulate(self.network)

    def backward(self, objective: Tensor) -> None:
        """Back-propagate, and update the weights if this is the step's last micro-batch.

        The engine divides by the number of micro-batches and averages over ranks.
        """
        self.accelerator.backward(objective)
        if self.accelerator.sync_gradients and self._clip is not None and self.zero_stage == 0:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self._clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, equal to the last bit on each of them."""
        return self.accelerator.reduce(tensor, reduction="sum")

    @torch.no_grad()
    def average_buffers(self) -> None:
        """Make the running statistics of the layers in training mode the mean over the ranks."""
        if self.accelerator.num_processes == 1:
            return
        saved = self.module.state_dict().keys()
        buffers = [
            buffer
            for prefix, layer in self.module.named_modules()
            if layer.training
            for name, buffer in layer.named_buffers(prefix, recurse=False)
            if name in saved and buffer.is_floating_point()
        ]
        if not buffers:
            return
        flat = torch.cat([b.flatten() for b in buffers])
        mean = self.accelerator.reduce(flat, reduction="mean")
        for buffer, part in zip(buffers, mean.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))

    def release(self) -> None:
        """Let go of the prepared network, so that another one can be prepared in its place."""
        self.network, self.optimizer = self.accelerator.free_memory(self.network, self.optimizer)
