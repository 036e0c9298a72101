"""The exported file: one safetensors file that holds a pruned model and all that it needs.

Legend: B batch, H, W.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dmtg.files import atomic_path
from dmtg.plugins import load_plugins
from model.bundle_plugins import missing_plugins, plugins_of
from model.errors import BundleError
from model.network import MultiTaskNetwork
from model.tasks.decode import natural

KEY = "dmtg"
VERSION = 2
_OLD_STACKS = "banks."  # in version 1 the prefix of the parameters of stacked heads


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
        ValueError: If a task has more than one head or a branch none.
    """
    groups = groups_of(network)
    if len(network.heads) != network.num_tasks or not all(groups):
        raise ValueError(
            f"network has {len(network.heads)} heads for {network.num_tasks} tasks and "
            f"{network.num_branches} branches, must have one per task and no branch without"
        )
    description = {
        "version": VERSION,
        "network": network.config(),
        "groups": groups,
        "plugins": plugins_of(network.config()),
        "metadata": dict(metadata),
    }
    tensors = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata={KEY: json.dumps(description, allow_nan=False)})


def load_pruned(path: str | Path, plugins: Iterable[str] = ()) -> PrunedModel:
    """Read an exported model, in evaluation mode on the CPU.

    Args:
        plugins: Modules to import first, which register parts that the model needs. Installed
            plug-ins are imported, too; the file itself never causes an import.

    Raises:
        BundleError: If the file is not one that `save_bundle` wrote, or needs plug-ins that are
            not registered.
        PluginError: If a plug-in cannot be imported.
    """
    load_plugins(plugins)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no such file") from error
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: not a readable safetensors file ({error})") from error
    description = _parsed(path, header)
    try:
        missing = missing_plugins(description.get("plugins", {}))
    except (AttributeError, TypeError) as error:
        raise BundleError(f"{path}: its plug-ins are not readable ({error!r})") from error
    if missing:
        raise BundleError(f"{path}: {missing}")
    try:
        network = MultiTaskNetwork.from_config(description["network"])
        metadata = description["metadata"]
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: its description cannot be built ({error!r})") from error
    tensors = _converted(tensors, description["version"])
    _check_tensors(path, network.state_dict(), tensors)
    network.load_state_dict(tensors)
    return PrunedModel(network, metadata).eval()


def _parsed(path: str | Path, header: Mapping[str, str]) -> dict[str, Any]:
    if KEY not in header:
        raise BundleError(f"{path}: not an exported model (its metadata has no {KEY!r})")
    try:
        description = json.loads(header[KEY])
    except json.JSONDecodeError as error:
        raise BundleError(f"{path}: its description is not JSON ({error})") from error
    version = description.get("version") if isinstance(description, dict) else None
    if version not in range(1, VERSION + 1):
        raise BundleError(
            f"{path}: format version is {version!r}, this program reads versions 1 to {VERSION}"
        )
    return description


def _converted(tensors: Mapping[str, Tensor], version: int) -> dict[str, Tensor]:
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
    path: str | Path, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    for name, tensor in expected.items():
        if name not in tensors:
            raise BundleError(f"{path}: tensor {name!r} is missing")
        if tensors[name].shape != tensor.shape:
            raise BundleError(
                f"{path}: tensor {name!r} has shape {tuple(tensors[name].shape)}, "
                f"must be {tuple(tensor.shape)}"
            )
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise BundleError(f"{path}: holds an unknown tensor {unknown[0]!r}")
