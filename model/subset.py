"""Smaller networks: some of the heads of a network, the branches that these need, and the trunk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from model.heads.layout import Head, HeadLayout, used_branches
from model.network import MultiTaskNetwork


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
    heads = tuple(heads)
    branches = {str(old): str(new) for new, old in enumerate(used_branches(heads))}
    rows = layout.kept_rows(heads)
    kept = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        key, _, attribute = rest.partition(".")
        if part == "stacked_heads":
            index = torch.tensor(rows[key], dtype=torch.long, device=tensor.device)
            kept[name] = tensor.index_select(0, index)
        elif part != "branches":
            kept[name] = tensor
        elif key in branches:
            kept[f"branches.{branches[key]}.{attribute}"] = tensor
    return kept
