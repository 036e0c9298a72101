"""Conversion of checkpoints that earlier versions of the program have written.

Version 1 (without a version in `progress.json`) has other names of tensors, and zero for a mean
loss of a head that has not been computed yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.network_config import check_entries
from model.tasks.spec import TaskSpec

VERSION = 2
_PARAMETERS = {"banks.": "stacked_heads."}
_GROUPING = {"signals.": "gradient_statistics.", "signal_tasks": "residual_tasks"}
_MEANS = ("average", "mean_losses")


def check_version(version: object) -> int:
    """Return the version of a checkpoint that this program can read.

    Raises:
        ValueError: If it is of a later version, or no version.
    """
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise ValueError(
            f"format version is {version!r}, this program reads versions 1 to {VERSION}"
        )
    return version


def convert_progress(progress: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Return the values of `progress.json` as this version writes them.

    Raises:
        ValueError: The description of the network has an entry that none has, such as weights to
            load.
    """
    if "network" in progress:
        check_entries(progress["network"])
    if version > 1 or "network" not in progress:
        return dict(progress)
    network = dict(progress["network"])
    network["tasks"] = [TaskSpec.from_dict(task).to_dict() for task in network["tasks"]]
    return {**progress, "network": network}


def convert_parameters(tensors: Mapping[str, Tensor], version: int) -> dict[str, Tensor]:
    """Return weights, or moments of one kind, under this version's parameter names."""
    if version > 1:
        return dict(tensors)
    return {_renamed(name, _PARAMETERS): value for name, value in tensors.items()}


def convert_grouping(tensors: Mapping[str, Tensor], version: int) -> dict[str, Tensor]:
    """Return the tensors of the grouping as this version writes them."""
    if version > 1:
        return dict(tensors)
    converted = {_renamed(name, _GROUPING): value for name, value in tensors.items()}
    for name in _MEANS:
        if name in converted:
            mean = converted[name]
            converted[name] = torch.where(mean == 0, torch.nan, mean)
    return converted


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
