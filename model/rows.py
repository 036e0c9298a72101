"""Rows of a stacked tensor: a slice where they are contiguous, which needs no copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.transfer import copy_to_device

Rows = slice | Tensor
Positions = NDArray[np.int64]


def as_rows(groups: Sequence[Positions], device: torch.device) -> list[Rows | None]:
    """Return each group of ascending positions as rows, or None where it is empty."""
    irregular = [group for group in groups if len(group) and not _contiguous(group)]
    indices = iter(to_device(irregular, device))
    return [_rows(group, indices) if len(group) else None for group in groups]


def to_device(groups: Sequence[Positions], device: torch.device) -> Sequence[Tensor]:
    """Return the groups as tensors on the device, by one copy that does not synchronise."""
    if not groups:
        return ()
    packed = copy_to_device(torch.from_numpy(np.concatenate(groups)), device)
    return packed.split([len(group) for group in groups])


def _contiguous(group: Positions) -> bool:
    return int(group[-1] - group[0]) + 1 == len(group)


def _rows(group: Positions, indices: Iterator[Tensor]) -> Rows:
    if _contiguous(group):
        return slice(int(group[0]), int(group[-1]) + 1)
    return next(indices)


def take(tensor: Tensor, rows: Rows) -> Tensor:
    """Return rows of the first axis: a view for a slice, else a copy."""
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)
