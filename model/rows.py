"""Rows of a stacked tensor: a slice where they are contiguous, so that taking them is free."""

from __future__ import annotations

import torch
from torch import Tensor

Rows = slice | Tensor


def as_rows(positions: list[int], device: torch.device) -> Rows | None:
    """Return ascending positions as rows, or None where there are none."""
    if not positions:
        return None
    first, last = positions[0], positions[-1]
    if positions == list(range(first, last + 1)):
        return slice(first, last + 1)
    return torch.tensor(positions, dtype=torch.long, device=device)


def take(tensor: Tensor, rows: Rows) -> Tensor:
    """Return rows of the first axis: a view for a slice, else a copy."""
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)
