"""FSDP2: weights, gradients and moments in shards, by torch's own `fully_shard`.

accelerate's FSDP2 engages on GPUs only. Here the launch file merely asks for it, and the sharding
is done below, by one path that is the same on every device.
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
_ALLOWED = {"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"}  # of what a launch file may ask


def shards(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the launcher asked for FSDP2.

    Raises:
        UserError: It asked for another version, or for offloading.
    """
    if environment.get(_ASKS, "false").lower() != "true":
        return False
    for variable, allowed in _ALLOWED.items():
        found = environment.get(variable, allowed).lower()
        if found != allowed:
            raise UserError(f"fsdp_config.{variable.lower()}: found {found}; allowed: {allowed}")
    return True


@contextmanager
def hidden_from_accelerate() -> Iterator[None]:
    """Let accelerate form a plain group of processes, whatever the launcher asked for."""
    asked = os.environ.pop(_ASKS, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[_ASKS] = asked


def shard(network: MultiTaskNetwork, device_type: str) -> None:
    """Shard the parameters of a network over all ranks, in place.

    The trunk, each branch and each stack are gathered as one when they are called, while the others
    stay cut.
    """
    # Features go on as views; nothing writes into them in place, which is what torch warns of.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    units = [network.trunk, *network.branches, *network.stacked_heads.values()]
    for unit in units:
        if any(True for _ in unit.parameters()):
            fully_shard(unit, mesh=mesh)
    fully_shard(network, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """The full value of a tensor that may be sharded; then a collective call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A full value, the same on every rank, sharded as the parameter is; no rank is asked."""
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
