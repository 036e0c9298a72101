"""Copy the weights that two networks of the same tasks have in common, by branch and task."""

from __future__ import annotations

import torch

from model.network import MultiTaskNetwork


@torch.no_grad()
def copy_common_weights(source: MultiTaskNetwork, target: MultiTaskNetwork) -> None:
    """Copy trunk, branches and heads that both networks have, and nothing else.

    Args:
        source: Network of the same tasks and encoder.
        target: Its branch k is copied from branch k of the source, and the head of a task on branch
            k from that of the same task on branch k.
    """
    weights = source.state_dict()
    for name, tensor in target.state_dict().items():  # shares memory with the network
        part, _, rest = name.partition(".")
        if part != "stacked_heads":
            if name in weights:
                tensor.copy_(weights[name])
            continue
        stack = rest.partition(".")[0]
        theirs, ours = source.layout.rows[stack], target.layout.rows[stack]
        common = [head for head in ours if head in theirs]
        tensor[[ours[head] for head in common]] = weights[name][[theirs[head] for head in common]]
