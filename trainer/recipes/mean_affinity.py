"""The mean of pairwise affinities over a run, kept with the run's checkpoints.

Legend: N tasks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainer.session import Session


def add_affinity(session: Session, affinity: Tensor, valid: Tensor) -> None:
    """Count one observation.

    Args:
        affinity: [N,N], the same on every rank.
        valid: Which pairs it is of, bool [N,N].
    """
    seen = session.observed
    added = torch.where(valid, affinity.double(), 0.0)
    seen["affinity"] = seen.get("affinity", torch.zeros_like(added)) + added
    seen["pairs"] = seen.get("pairs", torch.zeros_like(added)) + valid


def mean_affinity(session: Session) -> np.ndarray:
    """The mean affinity [N,N] of the pairs that were observed, zero for all others."""
    num_tasks = len(session.tasks)
    none = torch.zeros(num_tasks, num_tasks)
    total, pairs = (session.observed.get(name, none) for name in ("affinity", "pairs"))
    return (total / pairs.clamp_min(1.0)).cpu().numpy()
