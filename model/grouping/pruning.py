"""Pruning of heads: pure functions of the probabilities, the same on every process.

Legend: N tasks, K branches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def prune(probabilities: Tensor, alive: Tensor, threshold: float) -> Tensor:
    """Switch off the heads whose probability is under the threshold.

    A head that is off stays off, and the most probable head of a task always stays.

    Args:
        probabilities: [N,K].
        alive: Which heads are alive, bool [N,K].
        threshold: From 0 (prune nothing) to 1.

    Returns:
        Which heads are alive afterwards, bool [N,K].

    Raises:
        ValueError: If the threshold is outside 0 to 1 or a probability is not finite.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"pruning.threshold is {threshold!r}, must be from 0 to 1")
    return (alive & (probabilities >= threshold)) | harden(probabilities, alive)


def harden(probabilities: Tensor, alive: Tensor) -> Tensor:
    """Keep only the most probable live head of every task, the lowest branch of equals.

    Raises:
        ValueError: If a probability is not finite.
    """
    if not bool(probabilities.isfinite().all()):
        raise ValueError("probabilities hold a value that is not finite; must be from 0 to 1")
    live = torch.where(alive, probabilities, -1.0)
    # numpy documents that argmax returns the first of equal values, torch leaves it open.
    best = torch.from_numpy(live.detach().cpu().numpy().argmax(axis=1)).to(alive.device)
    return F.one_hot(best, alive.shape[1]).to(torch.bool)
