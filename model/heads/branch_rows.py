"""The rows of a stacked tensor that every branch uses, taken so that their gradient is one write.

Slices taken one by one would each send back a gradient of the whole tensor's size.

Legend: K branches, m rows of one branch, M rows of the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.rows import Rows


def all_rows(tensor: Tensor, rows: Sequence[Rows | None]) -> tuple[Tensor, list[int]]:
    """Return the rows of all branches one after another, and how many each branch has."""
    present = [own for own in rows if own is not None]
    counts = [own.stop - own.start if isinstance(own, slice) else len(own) for own in present]
    sizes = iter(counts)
    each = [0 if own is None else next(sizes) for own in rows]
    first = present[0]
    if isinstance(first, slice) and _follow_each_other(present):
        whole = first.start == 0 and sum(counts) == len(tensor)
        return tensor if whole else tensor[first.start : first.start + sum(counts)], each
    positions = [
        torch.arange(own.start, own.stop, device=tensor.device) if isinstance(own, slice) else own
        for own in present
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
        None if own is None else dict(zip(tensors, found, strict=True))
        for own, *found in zip(rows, *parts, strict=True)
    ]


def _follow_each_other(rows: Sequence[Rows]) -> bool:
    stop: int | None = None
    for own in rows:
        if not isinstance(own, slice) or (stop is not None and own.start != stop):
            return False
        stop = own.stop
    return True
