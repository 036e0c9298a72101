"""The running statistics of a network's normalisations, copied and averaged all at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from model.sync_batch_norm import SyncBatchNorm


class RunningStatistics:
    """The saved buffers that layers in training mode change in each forward pass.

    Args:
        module: A network on its device.
    """

    def __init__(self, module: nn.Module) -> None:
        saved = module.state_dict().keys()
        self._buffers = [
            (layer, buffer)
            for prefix, layer in module.named_modules()
            for name, buffer in layer.named_buffers(prefix, recurse=False)
            if name in saved
        ]

    def copy(self) -> dict[torch.dtype, Tensor]:
        """Return the values of all buffers, which `restore` takes."""
        return {dtype: _flat(buffers) for dtype, buffers in self._by_dtype().items()}

    @torch.no_grad()
    def restore(self, values: dict[torch.dtype, Tensor]) -> None:
        """Undo what forward passes since `copy` have changed."""
        for dtype, buffers in self._by_dtype().items():
            _assign(buffers, values[dtype])

    @torch.no_grad()
    def average(self, accelerator: Accelerator) -> None:
        """Average over the ranks, each of which must call it.

        Those of a synchronised normalisation are the same on all ranks.
        """
        buffers = [
            buffer
            for layer, buffer in self._buffers
            if layer.training
            and buffer.is_floating_point()
            and not isinstance(layer, SyncBatchNorm)
        ]
        if buffers:
            _assign(buffers, accelerator.reduce(_flat(buffers), reduction="mean"))

    def _by_dtype(self) -> dict[torch.dtype, list[Tensor]]:
        buffers: dict[torch.dtype, list[Tensor]] = {}
        for layer, buffer in self._buffers:
            if layer.training:
                buffers.setdefault(buffer.dtype, []).append(buffer)
        return buffers


def _flat(buffers: Sequence[Tensor]) -> Tensor:
    return torch.cat([buffer.flatten() for buffer in buffers])


def _assign(buffers: Sequence[Tensor], values: Tensor) -> None:
    parts = values.split([buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view_as(buffer))
