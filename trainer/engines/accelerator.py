"""Make the accelerator of this process, alone or in a group of any engine."""

from __future__ import annotations

import functools
import os
import warnings
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
)

from dmtg.optional_packages import hide_if_broken, import_package
from trainer.config.config import Config
from trainer.engines import rendezvous
from trainer.engines.compilation import check_compile
from trainer.engines.device import (
    chosen_precision,
    offload_threads,
    runs_on_cpu,
    set_arithmetic,
)
from trainer.engines.fsdp import hidden_from_accelerate, shards
from trainer.errors import UserError

_new_group = torch.distributed.new_group
# Numbers that ZeRO sums at once. DeepSpeed's default takes 2 GB on every GPU, and for most networks
# sends nothing before the backward pass is over.
REDUCE_BUCKET = 25_000_000
# The arithmetic of `tf32` is set by `set_arithmetic`.
_AUTOCAST = {"fp32": "no", "tf32": "no", "bf16": "bf16", "fp16": "fp16"}


def make_accelerator(config: Config) -> Accelerator:
    """Return the accelerator for the launcher of this process.

    Raises:
        UserError: Several processes were started without a distributed engine, the engine or the
            precision or `model.compile` cannot be used here, or the global batch does not divide
            into micro-batches.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    with_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    on_cpu = runs_on_cpu(config)
    set_arithmetic(config)
    # Buffers are averaged by `average_buffers`; DDP's broadcast would overwrite them.
    # `gradient_as_bucket_view` avoids a copy of the gradients.
    handlers: list[Any] = [
        DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    ]
    if world_size > 1:
        timeout = timedelta(seconds=config.run.timeout_seconds)
        _limit_waiting(timeout)
        backend = "gloo" if on_cpu else None
        handlers.append(InitProcessGroupKwargs(backend, rendezvous.URL, timeout))
    if with_deepspeed:
        _check_deepspeed()
    if on_cpu and with_deepspeed:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found none
        _use_plain_gloo()
    _ignore_warnings()
    shards()  # raises before anything starts
    with hidden_from_accelerate():
        accelerator = Accelerator(
            cpu=on_cpu and not with_deepspeed,
            mixed_precision=_AUTOCAST[chosen_precision(config)],
            gradient_accumulation_steps=config.optim.gradient_accumulation_steps,
            kwargs_handlers=handlers,
            step_scheduler_with_optimizer=False,
        )
    if world_size > 1 and accelerator.distributed_type == DistributedType.NO:
        raise UserError(
            f"{world_size} processes were launched but accelerate formed no group; use one of "
            "accelerate_configs/ (on CPU: those that end in _cpu)"
        )
    check_compile(config, accelerator)
    micro_batch = _micro_batch(config, accelerator.num_processes)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _configure_deepspeed(accelerator, config, micro_batch)
    return accelerator


def _ignore_warnings() -> None:
    """Ignore warnings of libraries that do not apply here, or are about another library."""
    for message in (
        # `forward_sync_buffers`, which torch 2.13 prefers, sends the buffers at every start.
        r"`broadcast_buffers` is deprecated",
        # DeepSpeed 0.19 calls functions that torch 2.13 has renamed.
        r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated",
    ):
        warnings.filterwarnings("ignore", message, FutureWarning)
    # The stride of a dimension of size 1 means nothing, as in kernels of one pixel or channel.
    strides = r"(?s)Grad strides do not match bucket view strides.*grad\.sizes\(\) = [^\]]*\b1\b"
    warnings.filterwarnings("ignore", strides, UserWarning)


def _limit_waiting(timeout: timedelta) -> None:
    """Set the timeout of every collective, also of groups that are made without a timeout later.

    DeepSpeed makes such groups for ZeRO 1 and 2; by torch's default they would wait 10 minutes on
    NCCL and 30 on gloo. NCCL's heartbeat gets the same timeout.
    """
    torch.distributed.new_group = functools.partial(_new_group, timeout=timeout)
    seconds = str(max(1, round(timeout.total_seconds())))
    os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", seconds)


def _check_deepspeed() -> None:
    """Check that DeepSpeed can be imported, and transformers, in which accelerate configures it."""
    hide_if_broken("torchvision")  # transformers fails with a broken one
    try:
        for name in ("deepspeed", "transformers"):
            import_package(
                name, "the launch file's DeepSpeed", f"install it with pip install {name}"
            )
    except ValueError as error:
        raise UserError(str(error)) from error


def _use_plain_gloo() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives when it starts on a CPU.

    The compiler holds a lock file. A process that is killed meanwhile leaves it locked, and every
    later start waits for ever.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _micro_batch(config: Config, num_processes: int) -> int:
    parts = num_processes * config.optim.gradient_accumulation_steps
    if config.data.global_batch % parts:
        raise UserError(
            f"data.global_batch is {config.data.global_batch}; it must be a multiple of "
            "processes x optim.gradient_accumulation_steps = "
            f"{num_processes} x {config.optim.gradient_accumulation_steps}"
        )
    return config.data.global_batch // parts


def _configure_deepspeed(accelerator: Accelerator, config: Config, micro_batch: int) -> None:
    from transformers.integrations import unset_hf_deepspeed_config

    # Every rank initialises or reads whole weights, which `prepare` shards; under ZeRO 3,
    # from_pretrained would shard them at once.
    unset_hf_deepspeed_config()
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    settings["train_micro_batch_size_per_gpu"] = micro_batch
    settings["gradient_accumulation_steps"] = config.optim.gradient_accumulation_steps
    settings["gradient_clipping"] = config.optim.max_grad_norm or 0.0
    zero = settings["zero_optimization"]
    zero["reduce_bucket_size"] = REDUCE_BUCKET
    zero["overlap_comm"] = config.run.overlap_comm
    # DeepSpeed's throughput timer (0.19.8) synchronises with the device twice in each micro-batch.
    settings["timers"] = {"throughput": {"enabled": False}}
    # Where the moments are offloaded torch's own fused Adam updates them: DeepSpeed's is compiled
    # when it is first used.
    settings["zero_force_ds_cpu_optimizer"] = False
    # On the CPU the number of threads can change the order of sums, and with it results.
    offloads = zero.get("offload_optimizer", {}).get("device") == "cpu"
    if accelerator.device.type == "cuda" and offloads:
        torch.set_num_threads(offload_threads(config.data.workers))
    precision = accelerator.mixed_precision
    if precision != "no":
        # fp32 parameters and moments, sharded, with low-precision arithmetic: exact updates, and
        # batch normalisation works on every device (DeepSpeed's own bf16 casts the parameters).
        for section in ("bf16", "fp16"):
            settings[section] = {"enabled": False}
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[precision]
        settings["torch_autocast"] = {"enabled": True, "dtype": dtype}
