"""Where `model.compile` can be used."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DistributedType

from trainer.config.config import Config
from trainer.engines.fsdp import shards
from trainer.errors import UserError


def check_compile(config: Config, accelerator: Accelerator) -> None:
    """Check that trunk and branches can be compiled on this device and by this engine.

    The hooks by which ZeRO 3 gathers and frees the weights of every layer are excluded from
    compilation (DeepSpeed 0.19.8), so that each layer would be a graph. FSDP2 has them at whole
    trunk and branches only, but its weights move in memory, and a CUDA graph holds their addresses.

    Raises:
        UserError: They cannot.
    """
    if not config.model.compile:
        return
    mode = config.model.compile_mode
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        if settings["zero_optimization"]["stage"] == 3:
            raise UserError(
                "model.compile: ZeRO 3 gathers the weights of every layer by itself, so that no "
                "graph holds more than one; allowed with ZeRO 3: false"
            )
    if mode is None:
        return
    if accelerator.device.type != "cuda":
        raise UserError(
            f"model.compile: {mode} records CUDA graphs, which need a GPU; allowed on the CPU: "
            "true, false"
        )
    if shards():
        raise UserError(
            f"model.compile: {mode} records CUDA graphs, which cannot follow the weights that "
            "FSDP2 moves; allowed with FSDP2: true, false"
        )
