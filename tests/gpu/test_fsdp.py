"""FSDP2's sharding in a group of one process: over NCCL on a GPU.

A launch of one process does not shard; two devices show a real run in test_engines.py.
"""

import copy

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tests.gpu.devices import ON_CPU
from tests.unit.trainer.engines.test_fsdp import Network, adam, weights
from trainer.engines.fsdp import shard, whole


def test_a_sharded_network_trains_as_a_whole_one(device):
    backend = "gloo" if ON_CPU else "nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        plain = Network().to(device)
        sharded = copy.deepcopy(plain)
        shard(sharded, device.type)
        assert all(isinstance(p, DTensor) for p in sharded.parameters())
        for network in (plain, sharded):
            optimizer = adam(network)
            for step in range(5):
                torch.manual_seed(step)
                batch = torch.randn(4, 5).to(device)
                network(batch).square().mean().backward()
                norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
                assert bool(whole(norm).isfinite())
                optimizer.step()
                optimizer.zero_grad()
        for name, value in weights(plain).items():
            torch.testing.assert_close(weights(sharded)[name], value)
    finally:
        dist.destroy_process_group()
