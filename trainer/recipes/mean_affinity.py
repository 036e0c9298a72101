"""The mean of pairwise affinities over a run, saved with the run's checkpoints.

Legend: N tasks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainer.recipes.observed_run import ObservedRun


def add_affinity(run: ObservedRun, affinity: Tensor, valid: Tensor) -> None:
    """Add one observation.

    Args:
        affinity: [N,N], the same on every rank.
        valid: Which pairs were observed, bool [N,N].
    """
    observed = run.observed
    added = torch.where(valid, affinity.double(), 0.0)
    observed["affinity"] = observed.get("affinity", torch.zeros_like(added)) + added
    observed["pairs"] = observed.get("pairs", torch.zeros_like(added)) + valid


def mean_affinity(run: ObservedRun) -> np.ndarray:
    """Return the mean affinity [N,N] of the pairs that were observed, zero for all others."""
    num_tasks = len(run.tasks)
    none = torch.zeros(num_tasks, num_tasks)
    total, pairs = (run.observed.get(name, none) for name in ("affinity", "pairs"))
    return (total / pairs.clamp_min(1.0)).cpu().numpy()
