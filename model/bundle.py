"""The exported file: one safetensors file that holds a pruned model and all that it needs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dmtg.files import atomic_path
from dmtg.memory import is_out_of_memory
from dmtg.names import shortened
from dmtg.plugins import load_plugins
from dmtg.suggestions import did_you_mean
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
from model.heads.layout import Head
from model.network import MultiTaskNetwork
from model.pruned_model import PrunedModel, groups_of
from model.skeleton import build_skeleton, check_maps
from model.subset import TensorPart, subset_tensors, task_subset_config

VERSION = 2
_OLD_STACKS = "banks."  # in version 1 the prefix of the parameters of stacked heads


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


def load_pruned(
    path: str | Path, plugins: Iterable[str] = (), *, tasks: Collection[str] | None = None
) -> PrunedModel:
    """Read an exported model, in evaluation mode on the CPU.

    Nothing is allocated before the network that the file describes has been compared with the
    tensors in it.

    Args:
        path: The file.
        plugins: Modules to import first, which register parts that the model needs. Installed
            plug-ins are imported, too; the file itself never causes an import.
        tasks: Names of the tasks to load; None loads all. Of the file's tensors only the trunk, the
            branches of these tasks and their heads are read. The model has them in the order of the
            file.

    Raises:
        BundleError: If the file is not one that `save_bundle` wrote, describes a network that its
            tensors do not fit, needs plug-ins that are not registered, or lacks one of the tasks.
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
    network, wanted = _build(path, header, version, tasks)
    network.load_state_dict(read_tensors(path, wanted))
    return PrunedModel(network, metadata).eval()


def _build(
    path: str | Path, header: BundleHeader, version: int, tasks: Collection[str] | None
) -> tuple[MultiTaskNetwork, dict[str, TensorPart]]:
    """Return the network of some tasks, and what of the file belongs into which of its tensors.

    All that the file describes is compared with its tensors first.
    """
    # A damaged description can cause any error, and so can a part of the network in it.
    with _building(path, Exception):
        config = header.description["network"]
        skeleton = build_skeleton(config, len(header.tensors), header.bytes)
        _check_pruned(skeleton)
    expected, stored = skeleton.state_dict(), _stored_names(header.tensors, version)
    _check_tensors(path, expected, {name: header.tensors[old] for name, old in stored.items()})
    heads = skeleton.heads if tasks is None else _heads_of(path, skeleton, tasks)
    wanted = {
        name: TensorPart(stored[part.name], part.rows)
        for name, part in subset_tensors(expected, skeleton.layout, heads).items()
    }
    # What is left are values that `meta` does not look at, such as a deviation below zero.
    with _building(path, ValueError):
        check_maps(skeleton)
        network = MultiTaskNetwork.from_config(
            task_subset_config(skeleton.config(), skeleton.layout, heads),
            feature_shape=skeleton.feature_shape,
        )
    for name, _ in list(network.named_parameters()):
        if name not in wanted:  # `EncoderFamily.finish` removed it
            owner, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(owner), attribute, None)
    return network, wanted


def _heads_of(
    path: str | Path, network: MultiTaskNetwork, tasks: Collection[str]
) -> tuple[Head, ...]:
    """Return the heads of some tasks.

    Raises:
        BundleError: A task is not one of the network.
    """
    if isinstance(tasks, str) or not tasks:
        raise BundleError(f"{path}: tasks is {tasks!r}, must be a list of names of tasks")
    names = {task.name: index for index, task in enumerate(network.tasks)}
    for task in tasks:
        if task not in names:
            raise BundleError(
                f"{path}: has no task {task!r}; its {len(names)} tasks are "
                f"{shortened(', '.join(names), 500)}{did_you_mean(task, names)}"
            )
    chosen = {names[task] for task in tasks}
    return tuple(head for head in network.heads if head[0] in chosen)


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


def _stored_names(tensors: Iterable[str], version: int) -> dict[str, str]:
    """Return the names of tensors in a file by those that this version gives them."""
    if version > 1:
        return {name: name for name in tensors}
    return {
        f"stacked_heads.{name.removeprefix(_OLD_STACKS)}"
        if name.startswith(_OLD_STACKS)
        else name: name
        for name in tensors
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
