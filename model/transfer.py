"""Copies from the host to a device for which no step has to wait."""

from __future__ import annotations

import torch
from torch import Tensor


def copy_to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return values of the host on a device; the host does not wait for the work of a GPU.

    From pageable memory torch 2.13 would wait until the stream has reached the copy; with
    `non_blocking` alone, CUDA's driver still may. torch reuses page-locked memory only after the
    copies from it.
    """
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
