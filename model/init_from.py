"""Starts a network with the weights of exported models.

Legend: K branches.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.bundle import BundleError, load_pruned
from model.heads.layout import HeadLayout
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec

logger = logging.getLogger(__name__)

_LISTED = 10  # names in a log line


@dataclass(frozen=True)
class _HeadState:
    """The task of a head of an exported model, and the head's tensors."""

    task: TaskSpec
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class _Source:
    """An exported model."""

    path: Path
    network: MultiTaskNetwork
    heads: dict[str, _HeadState]

    def error(self, found: str, allowed: str) -> ValueError:
        return ValueError(f"model.init_from: {self.path} has {found}, must have {allowed}")


def start_from(network: MultiTaskNetwork, paths: Sequence[Path]) -> None:
    """Take over the weights of exported models: trunk, branches, and the heads of common tasks.

    Branch k starts as the branch of file k, or of the only file; where a file has K branches, as
    its branch k. The trunk is the first file's. How many stages a file's own trunk has does not
    matter. A head starts as its task's in the file of its branch; heads of tasks that the file
    lacks stay as they are, and the file's other tasks are not used.

    Raises:
        ValueError: The number of files is neither one nor K, a file cannot be read, or its model
            does not fit; the network is as it was then.
    """
    num_branches = network.num_branches
    if len(paths) not in {1, num_branches}:
        raise ValueError(
            f"model.init_from names {len(paths)} files, must name 1 or {num_branches}, one for "
            "each branch"
        )
    opened = [_open(path, network) for path in paths]
    sources = opened if len(opened) == num_branches else opened * num_branches
    state = {name: value.clone() for name, value in network.state_dict().items()}
    _take_encoders(network, sources, state)
    fresh = _take_heads(network, sources, state)
    network.load_state_dict(state)
    names = {task.name for task in network.tasks}
    for source in opened:
        used = [name for name in source.heads if name in names]
        unused = [name for name in source.heads if name not in names]
        logger.info("model.init_from: encoder and heads of %s from %s", _listed(used), source.path)
        if unused:
            logger.info(
                "model.init_from: %s of it not used: the run has no such task", _listed(unused)
            )
    if fresh:
        logger.info("model.init_from: heads that start fresh: %s", _listed(fresh))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "no task") + more


def _open(path: Path, network: MultiTaskNetwork) -> _Source:
    try:
        found = load_pruned(path).network
    except BundleError as error:
        raise ValueError(f"model.init_from: {error}") from None
    source = _Source(path, found, _heads_of(found))
    if found.num_branches not in {1, network.num_branches}:
        raise source.error(
            f"{found.num_branches} branches", f"1 or as many as the run: {network.num_branches}"
        )
    theirs, own = (_described(each.config()["encoder"]) for each in (found, network))
    if theirs != own:
        raise source.error(f"encoder {theirs}", f"the run's: {own}")
    return source


def _heads_of(network: MultiTaskNetwork) -> dict[str, _HeadState]:
    layout = HeadLayout(network.tasks, network.num_branches, network.heads)
    heads = {}
    for stack, rows in layout.rows.items():
        state = network.stacked_heads[stack].state_dict()
        for (task, _), row in rows.items():
            tensors = {key: value[row] for key, value in state.items()}
            heads[network.tasks[task].name] = _HeadState(network.tasks[task], tensors)
    return heads


def _described(encoder: dict[str, Any]) -> str:
    """Name and options of an encoder, wherever it is split."""
    return f"{encoder['name']} {json.dumps(encoder['options'], sort_keys=True)}"


def _encoder_state(network: MultiTaskNetwork, branch: int) -> dict[str, Tensor]:
    """The tensors of the trunk and then of a branch: in one order, wherever they are split."""
    state = network.state_dict()
    parts = ("trunk.", f"branches.{branch}.")
    return {name: state[name] for part in parts for name in state if name.startswith(part)}


def _take_encoders(
    network: MultiTaskNetwork, sources: Sequence[_Source], state: dict[str, Tensor]
) -> None:
    trunk: dict[str, Tensor] = {}
    for branch, source in enumerate(sources):
        own = _encoder_state(network, branch)
        theirs = _encoder_state(source.network, branch % source.network.num_branches)
        _check_encoders(source, own, theirs)
        found = dict(zip(own, theirs.values(), strict=True))
        shared = {name: value for name, value in found.items() if name.startswith("trunk.")}
        trunk = trunk or shared
        state |= found | trunk
        if any(not torch.equal(value, trunk[name]) for name, value in shared.items()):
            logger.warning(
                "model.init_from: the trunk of %s differs for branch %d; it starts as that of %s",
                source.path,
                branch,
                sources[0].path,
            )


def _check_encoders(source: _Source, own: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    if len(own) != len(theirs):
        raise source.error(f"{len(theirs)} tensors in its encoder", str(len(own)))
    for name, other in zip(own, theirs, strict=True):
        found, wanted = tuple(theirs[other].shape), tuple(own[name].shape)
        if found != wanted or name.rpartition(".")[2] != other.rpartition(".")[2]:
            raise source.error(f"{other} of shape {found}", f"{name} of shape {wanted}")


def _take_heads(
    network: MultiTaskNetwork, sources: Sequence[_Source], state: dict[str, Tensor]
) -> list[str]:
    """Copy the heads that the files have.

    Returns:
        The others, named by task and branch.
    """
    fresh = []
    layout = HeadLayout(network.tasks, network.num_branches, network.heads)
    for stack, rows in layout.rows.items():
        stacked = {
            key: state[f"stacked_heads.{stack}.{key}"]
            for key in network.stacked_heads[stack].state_dict()
        }
        for (task, branch), row in rows.items():
            spec, source = network.tasks[task], sources[branch]
            if spec.name not in source.heads:
                fresh.append(f"{spec.name} on branch {branch}")
                continue
            head = source.heads[spec.name]
            _check_head(source, spec, {key: value[row] for key, value in stacked.items()}, head)
            for key, value in head.tensors.items():
                stacked[key][row] = value
    return fresh


def _check_head(source: _Source, spec: TaskSpec, own: dict[str, Tensor], head: _HeadState) -> None:
    theirs, wanted = (f"{task.kind} with {task.outputs} outputs" for task in (head.task, spec))
    if theirs != wanted:
        raise source.error(f"task {spec.name!r} of kind {theirs}", wanted)
    shapes = [{key: tuple(value.shape) for key, value in t.items()} for t in (head.tensors, own)]
    if shapes[0] != shapes[1]:
        raise source.error(f"a head of {spec.name!r} of shapes {shapes[0]}", f"{shapes[1]}")
