"""FSDP2: weights, gradients and moments in shards, by torch's own `fully_shard`.

accelerate's FSDP2 works on GPUs only. Here the launch file only selects it; the sharding is done
below, in the same way on every device.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from model.network import MultiTaskNetwork
from trainer.errors import UserError

_ASKS = "ACCELERATE_USE_FSDP"
_ALLOWED = {"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"}  # settings of a launch file


def shards(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the launch file selects FSDP2.

    Raises:
        UserError: It selects another version, or offloading.
    """
    if environment.get(_ASKS, "false").lower() != "true":
        return False
    for variable, allowed in _ALLOWED.items():
        value = environment.get(variable, allowed).lower()
        if value != allowed:
            raise UserError(f"fsdp_config.{variable.lower()}: found {value}; allowed: {allowed}")
    return True


@contextmanager
def hidden_from_accelerate() -> Iterator[None]:
    """Let accelerate form a plain group of processes, whatever the launch file selects."""
    asked = os.environ.pop(_ASKS, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[_ASKS] = asked


def shard(network: MultiTaskNetwork, device_type: str) -> None:
    """Shard the parameters of a network over all ranks, in place.

    The trunk, each branch and each stack are gathered when they are called, while the others stay
    sharded.
    """
    # torch warns that in-place writes to a returned view lose its hook; nothing here writes so.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    units = [network.trunk, *network.branches, *network.stacked_heads.values()]
    for unit in units:
        if any(True for _ in unit.parameters()):
            fully_shard(unit, mesh=mesh)
    fully_shard(network, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """Return the full value of a tensor; a collective call if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's shard, as the parameter's, of a value that every rank has in full."""
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
