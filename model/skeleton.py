"""Build a described network without storage, within bounds that its file sets.

A few bytes can describe a network of any size. On the device `meta` its tensors have shapes only,
which can be compared with those in the file before anything is allocated.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dmtg.plugins import DENSE_DECODERS, ENCODERS
from model.network import MultiTaskNetwork

MODULES_PER_TENSOR = 16  # that a network may have for each tensor in its file, and
MODULES_BESIDES = 1_000  # at least: activations, containers, parts that are dropped
BYTES_BESIDES = 2**26  # of tensors that are computed rather than read, besides as much as the file
MAX_MAP_BYTES = 2**33  # of one tensor of a forward pass of one image
# Errors of a part that computes what `meta` cannot, such as the value of a tensor: those of
# `tensor.item()` and of `tensor.numpy()`.
_NOT_ON_META = (RuntimeError, TypeError)


def build_skeleton(config: Mapping[str, Any], num_tensors: int, num_bytes: int) -> MultiTaskNetwork:
    """Build a network on the device `meta`; all its branches are the same module.

    A network with an encoder or decoder from a plug-in that `meta` cannot compute is built with
    storage, within the same bounds.

    Args:
        config: `MultiTaskNetwork.config()`, as read from a file.
        num_tensors: In the file.
        num_bytes: Size of the file.

    Raises:
        ValueError: The network cannot be built, or is too large for the file.
    """
    limit = MODULES_BESIDES + MODULES_PER_TENSOR * num_tensors
    most = num_bytes + BYTES_BESIDES
    # Start values are not needed: the caller's random state must not change.
    with torch.random.fork_rng(devices=[]), _bounded(limit, most):
        try:
            with torch.device("meta"):
                network = MultiTaskNetwork.from_config(config, shared_branches=True)
        except _NOT_ON_META:
            if not _has_plugin(config):
                raise
            network = MultiTaskNetwork.from_config(config, shared_branches=True)
    _check_computed(network, most)
    return network.eval()


def _has_plugin(config: Mapping[str, Any]) -> bool:
    """Return whether encoder or decoder are from a plug-in, which the user has chosen to import."""
    parts = ((ENCODERS, config["encoder"]["name"]), (DENSE_DECODERS, config["decoder"]))
    return any(registry.plugin_of(name) is not None for registry, name in parts)


@torch.no_grad()
def check_maps(skeleton: MultiTaskNetwork) -> None:
    """Check the size of what a skeleton computes from one image.

    What an encoder or decoder from a plug-in computes is unknown where `meta` cannot compute it.

    Raises:
        ValueError: A map is larger than `MAX_MAP_BYTES`.
    """
    if skeleton.device.type != "meta":
        return
    try:
        with torch.device("meta"), _BoundedMaps():
            images = torch.empty(1, len(skeleton.image_mean), *skeleton.image_size)
            maps = skeleton.branches[0](skeleton.trunk(images))
            for name, spec in skeleton.layout.specs.items():
                if spec.dense:
                    skeleton.stacked_heads[name]([maps], [slice(0, 1)])
    except _NOT_ON_META:
        if not _has_plugin(skeleton.config()):
            raise


@contextmanager
def _bounded(limit: int, most: int) -> Iterator[None]:
    """Bound what this thread builds in the block: modules, and bytes of each tensor of one."""
    thread, count = threading.get_ident(), 0

    def add_module(_owner: nn.Module, _name: str, _module: nn.Module | None) -> None:
        nonlocal count
        if threading.get_ident() == thread:
            count += 1
            if count > limit:
                raise ValueError(f"it has more than the {limit} modules that its tensors allow")

    def add_tensor(_owner: nn.Module, name: str, tensor: Tensor | None) -> None:
        if threading.get_ident() == thread and tensor is not None and tensor.nbytes > most:
            raise ValueError(
                f"a tensor {name!r} of shape {tuple(tensor.shape)} would have {tensor.nbytes} "
                f"bytes, which this file cannot hold"
            )

    handles = (
        registration.register_module_module_registration_hook(add_module),
        registration.register_module_parameter_registration_hook(add_tensor),
        registration.register_module_buffer_registration_hook(add_tensor),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_computed(network: MultiTaskNetwork, most: int) -> None:
    """Check the bytes of buffers that are not in the file: tables of positions and the like."""
    saved = network.state_dict().keys()
    buffers = network.named_buffers(remove_duplicate=False)
    computed = sum(buffer.nbytes for name, buffer in buffers if name not in saved)
    if computed > most:
        raise ValueError(f"its buffers would have {computed} bytes, allowed are {most}")


class _BoundedMaps(TorchDispatchMode):
    """Bounds every tensor that is computed in the block."""

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.nbytes > MAX_MAP_BYTES:
                raise ValueError(
                    f"a prediction would need a map of shape {tuple(value.shape)} with "
                    f"{value.nbytes} bytes, allowed are {MAX_MAP_BYTES}"
                )
        return result
