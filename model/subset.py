"""Smaller networks: some of the heads of a network, the branches that these need, and the trunk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.heads.layout import Head, HeadLayout, used_branches
from model.network import MultiTaskNetwork


@dataclass(frozen=True)
class TensorPart:
    """A tensor of a network, or some rows of a stack of heads.

    Attributes:
        name: Of the tensor.
        rows: Of its first axis, ascending; None takes the whole tensor.
    """

    name: str
    rows: tuple[int, ...] | None = None


def subset(network: MultiTaskNetwork, heads: Iterable[Head]) -> MultiTaskNetwork:
    """Return a new network of these heads and their branches, which are renumbered.

    The weights are copied. `used_branches(heads)` are the branches in their old numbers.

    Raises:
        ValueError: If a head does not exist or a task has none.
    """
    heads = tuple(heads)
    # The random start values are overwritten: the caller's random state must not change.
    with torch.random.fork_rng(devices=[]):
        smaller = MultiTaskNetwork.from_config(
            subset_config(network.config(), network.layout, heads)
        )
    smaller.load_state_dict(subset_state(network.state_dict(), network.layout, heads))
    return smaller.to(network.device).train(network.training)


def subset_config(
    config: Mapping[str, Any], layout: HeadLayout, heads: Iterable[Head]
) -> dict[str, Any]:
    """Return `config()` of the subset of a network; no weights are needed.

    Args:
        config: `config()` of the network.
        layout: Of the network.
        heads: As given to `subset`.

    Raises:
        ValueError: If a head does not exist.
    """
    kept = layout.select(heads, torch.device("cpu"))
    branches = {old: new for new, old in enumerate(kept.branches)}
    return {
        **config,
        "num_branches": len(branches),
        "heads": [[task, branches[branch]] for task, branch in kept.heads],
    }


def subset_state(
    state: Mapping[str, Tensor], layout: HeadLayout, heads: Iterable[Head]
) -> dict[str, Tensor]:
    """Return the tensors of the subset of a network, under the subset's parameter names.

    Args:
        state: Weights, buffers or moments of the network by parameter name; any part of them.
        layout: Of the network.
        heads: As given to `subset`.
    """
    kept = {}
    for name, part in subset_tensors(state, layout, heads).items():
        tensor = state[part.name]
        if part.rows is not None:
            index = torch.tensor(part.rows, dtype=torch.long, device=tensor.device)
            tensor = tensor.index_select(0, index)
        kept[name] = tensor
    return kept


def subset_tensors(
    names: Iterable[str], layout: HeadLayout, heads: Iterable[Head]
) -> dict[str, TensorPart]:
    """Return what the subset of a network takes from which tensor, by the subset's names.

    Args:
        names: Of tensors of the network; any part of them.
        layout: Of the network.
        heads: As given to `subset`.
    """
    heads = tuple(heads)
    branches = {str(old): str(new) for new, old in enumerate(used_branches(heads))}
    rows = layout.kept_rows(heads)
    kept = {}
    for name in names:
        part, _, rest = name.partition(".")
        key, _, attribute = rest.partition(".")
        if part == "stacked_heads":
            if len(rows[key]) == len(layout.rows[key]):
                kept[name] = TensorPart(name)
            elif rows[key]:
                kept[name] = TensorPart(name, tuple(rows[key]))
        elif part != "branches":
            kept[name] = TensorPart(name)
        elif key in branches:
            kept[f"branches.{branches[key]}.{attribute}"] = TensorPart(name)
    return kept


def task_subset_config(
    config: Mapping[str, Any], layout: HeadLayout, heads: Iterable[Head]
) -> dict[str, Any]:
    """Return `subset_config` without the tasks that have none of the heads.

    The tasks that are left are renumbered in their order.

    Args:
        config: `config()` of the network.
        layout: Of the network.
        heads: As given to `subset`, but a task may have none.
    """
    smaller = subset_config(config, layout, heads)
    tasks = {old: new for new, old in enumerate(sorted({task for task, _ in smaller["heads"]}))}
    return {
        **smaller,
        "tasks": [config["tasks"][task] for task in tasks],
        "heads": [[tasks[task], branch] for task, branch in smaller["heads"]],
    }
