"""The exported file: one safetensors file that holds a pruned model and all that it needs.

Legend: B batch, H, W.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dmtg.files import atomic_path
from dmtg.memory import is_out_of_memory
from dmtg.plugins import load_plugins
from model.bundle_file import (
    KEY,
    BundleHeader,
    TensorInfo,
    not_finite,
    read_header,
    read_tensors,
)
from model.bundle_plugins import missing_plugins, plugins_of
from model.errors import BundleError
from model.network import MultiTaskNetwork
from model.skeleton import build_skeleton, check_maps
from model.tasks.decode import natural

VERSION = 2
_OLD_STACKS = "banks."  # in version 1 the prefix of the parameters of stacked heads


T = TypeVar("T", Tensor, TensorInfo)


class PrunedModel(nn.Module):
    """An exported model: one head per task.

    Attributes:
        network: The network behind it.
        tasks: The task specs.
        groups: Per branch the names of its tasks.
        metadata: What the exporter added.
    """

    def __init__(self, network: MultiTaskNetwork, metadata: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.tasks = network.tasks
        self.groups = groups_of(network)
        self.metadata = dict(metadata)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images it takes."""
        return self.network.image_size

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return per task its prediction in natural terms, see `model.tasks.decode.natural`.

        Args:
            images: uint8 [B,3,H,W].
        """
        predictions = self.network(images, self.network.select(self.network.heads))["predictions"]
        return {spec.name: natural(spec, predictions[spec.name]) for spec in self.tasks}


def groups_of(network: MultiTaskNetwork) -> list[list[str]]:
    """Return per branch the names of the tasks with a head on it."""
    groups: list[list[str]] = [[] for _ in range(network.num_branches)]
    for task, branch in sorted(network.heads):
        groups[branch].append(network.tasks[task].name)
    return groups


def save_bundle(path: str | Path, network: MultiTaskNetwork, metadata: Mapping[str, Any]) -> None:
    """Write a pruned network; the file appears under its name only when it is complete.

    Args:
        metadata: Anything that JSON can hold.

    Raises:
        ValueError: If a task has more than one head or a branch none, or a weight is not finite.
    """
    _check_pruned(network)
    description = {
        "version": VERSION,
        "network": network.config(),
        "groups": groups_of(network),
        "plugins": plugins_of(network.config()),
        "metadata": dict(metadata),
    }
    tensors = {
        name: tensor.to("cpu", _saved_dtype(tensor)).contiguous()
        for name, tensor in network.state_dict().items()
    }
    broken = not_finite(tensors)
    if broken is not None:
        raise ValueError(f"network cannot be saved: {broken}")
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata={KEY: json.dumps(description, allow_nan=False)})


def load_pruned(path: str | Path, plugins: Iterable[str] = ()) -> PrunedModel:
    """Read an exported model, in evaluation mode on the CPU.

    Nothing is allocated before the network that the file describes has been compared with the
    tensors in it.

    Args:
        plugins: Modules to import first, which register parts that the model needs. Installed
            plug-ins are imported, too; the file itself never causes an import.

    Raises:
        BundleError: If the file is not one that `save_bundle` wrote, describes a network that its
            tensors do not fit, or needs plug-ins that are not registered.
        PluginError: If a plug-in cannot be imported.
    """
    load_plugins(plugins)
    header = read_header(path)
    description = header.description
    version = description.get("version")
    if not isinstance(version, int) or version not in range(1, VERSION + 1):
        raise BundleError(
            f"{path}: format version is {version!r}, this program reads versions 1 to {VERSION}"
        )
    try:
        missing = missing_plugins(description.get("plugins", {}))
    except (AttributeError, TypeError) as error:
        raise BundleError(f"{path}: its plug-ins are not readable ({error!r})") from error
    if missing:
        raise BundleError(f"{path}: {missing}")
    metadata = description.get("metadata")
    if not isinstance(metadata, dict):
        raise BundleError(f"{path}: its metadata is {type(metadata).__name__}, must be an object")
    network = _build(path, header, version)
    network.load_state_dict(_converted(read_tensors(path), version))
    return PrunedModel(network, metadata).eval()


def _build(path: str | Path, header: BundleHeader, version: int) -> MultiTaskNetwork:
    """Return the network that a file describes, after comparing it with the file's tensors."""
    # A damaged description can cause any error, and so can a part of the network in it.
    with _building(path, Exception):
        config = header.description["network"]
        skeleton = build_skeleton(config, len(header.tensors), header.bytes)
        _check_pruned(skeleton)
    expected = skeleton.state_dict()
    _check_tensors(path, expected, _converted(header.tensors, version))
    # What is left are values that `meta` does not look at, such as a deviation below zero.
    with _building(path, ValueError):
        check_maps(skeleton)
        network = MultiTaskNetwork.from_config(config, feature_shape=skeleton.feature_shape)
    for name, _ in list(network.named_parameters()):
        if name not in expected:  # `EncoderFamily.finish` removed it
            owner, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(owner), attribute, None)
    return network


@contextmanager
def _building(path: str | Path, kind: type[Exception]) -> Iterator[None]:
    """Turn errors of a kind into a `BundleError`; running out of memory is no fault of the file."""
    try:
        yield
    except kind as error:
        if is_out_of_memory(error):
            raise
        text = str(error) if isinstance(error, ValueError) else repr(error)
        cause = " ".join(text.split())  # some libraries write several lines
        raise BundleError(f"{path}: its description cannot be built ({cause})") from error


def _check_pruned(network: MultiTaskNetwork) -> None:
    """Check that each task has one head and each branch at least one.

    Raises:
        ValueError: A task has several, or a branch none.
    """
    if len(network.heads) != network.num_tasks or not all(groups_of(network)):
        raise ValueError(
            f"network has {len(network.heads)} heads for {network.num_tasks} tasks and "
            f"{network.num_branches} branches, must have one per task and no branch without"
        )


def _converted(tensors: Mapping[str, T], version: int) -> dict[str, T]:
    """Return the tensors under the names that this version gives them."""
    if version > 1:
        return dict(tensors)
    return {
        f"stacked_heads.{name.removeprefix(_OLD_STACKS)}"
        if name.startswith(_OLD_STACKS)
        else name: tensor
        for name, tensor in tensors.items()
    }


def _check_tensors(
    path: str | Path, expected: Mapping[str, Tensor], tensors: Mapping[str, TensorInfo]
) -> None:
    for name, tensor in expected.items():
        if name not in tensors:
            raise BundleError(f"{path}: tensor {name!r} is missing")
        found, dtype = tensors[name], _saved_dtype(tensor)
        if found.shape != tensor.shape:
            raise BundleError(
                f"{path}: tensor {name!r} has shape {found.shape}, must be {tuple(tensor.shape)}"
            )
        if found.dtype != dtype:
            raise BundleError(f"{path}: tensor {name!r} is of {found.dtype}, must be {dtype}")
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise BundleError(f"{path}: holds an unknown tensor {unknown[0]!r}")


def _saved_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype
