"""The rows of a stacked tensor that each branch uses, taken in one operation.

The gradient of a slice has the size of the whole tensor, so one slice per branch would be slow.

Legend: K branches, m rows of one branch, M rows of the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.rows import Rows


def all_rows(tensor: Tensor, rows: Sequence[Rows | None]) -> tuple[Tensor, list[int]]:
    """Return the rows of all branches one after another, and how many each branch has."""
    present = [part for part in rows if part is not None]
    counts = [part.stop - part.start if isinstance(part, slice) else len(part) for part in present]
    sizes = iter(counts)
    each = [0 if part is None else next(sizes) for part in rows]
    first = present[0]
    if isinstance(first, slice) and _follow_each_other(present):
        whole = first.start == 0 and sum(counts) == len(tensor)
        return tensor if whole else tensor[first.start : first.start + sum(counts)], each
    positions = [
        torch.arange(part.start, part.stop, device=tensor.device)
        if isinstance(part, slice)
        else part
        for part in present
    ]
    return tensor.index_select(0, torch.cat(positions)), each


def rows_of_each_branch(
    tensors: Mapping[str, Tensor], rows: Sequence[Rows | None]
) -> list[dict[str, Tensor] | None]:
    """Return for every branch its rows [m,...] of each tensor, or None where it has none."""
    parts = []
    for tensor in tensors.values():
        taken, sizes = all_rows(tensor, rows)
        parts.append(taken.split(sizes))
    return [
        None if branch_rows is None else dict(zip(tensors, values, strict=True))
        for branch_rows, *values in zip(rows, *parts, strict=True)
    ]


def _follow_each_other(rows: Sequence[Rows]) -> bool:
    stop: int | None = None
    for part in rows:
        if not isinstance(part, slice) or (stop is not None and part.start != stop):
            return False
        stop = part.stop
    return True
