"""A convolution of images, batch normalisation, ReLU and max-pooling, in few passes over memory.

Legend: B batch, C channels, H, W image size, h, w pooled size, P parts of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from model.sync_batch_norm import SyncBatchNorm

_POOL, _STRIDE = 3, 2
# Of a map: it stays in the cache from one operation to the next. Memory of more than 32 MiB would
# also come from the system each time anew, with a page fault for every 4 KiB.
_PART_BYTES = 2**22


class PooledStem(nn.Sequential):
    """A 3x3 convolution of images [B,3,H,W], batch normalisation, ReLU and 3x3 max-pooling.

    A training pass on the CPU never holds the convolution's whole output, the largest map of an
    encoder. Normalisation and ReLU are monotone in every channel, so that the maps can be pooled
    before them, some images at a time; the backward pass computes them again.

    Args:
        channels: C.

    Attributes:
        in_parts: Whether it may do so; to foresee on a CPU what another device needs, it may not.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            _Conv(3, channels, 3, padding=1, bias=False),
            _NormReLU(channels),
            nn.ReLU(),
            nn.MaxPool2d(_POOL, _STRIDE),
        )
        self.in_parts = True

    def forward(self, input: Tensor) -> Tensor:
        """Return the pooled maps [B,C,h,w]."""
        conv, norm = self[0], self[1]
        # The norm is of another class where statistics are those of all ranks.
        if self.in_parts and isinstance(norm, _NormReLU) and norm.training and _is_plain(input):
            return norm(input, conv)
        return super().forward(input)


def _is_plain(images: Tensor) -> bool:
    """Whether the images are on the CPU, in full precision and only read."""
    if images.device.type != "cpu" or images.requires_grad or torch.compiler.is_compiling():
        return False
    full = images.dtype in (torch.float32, torch.float64)
    return full and not torch.is_autocast_enabled("cpu")


class _Conv(nn.Conv2d):
    """A convolution that can be asked for its pooled output and statistics instead."""

    def forward(self, input: Tensor, signs: Tensor | None = None) -> Any:  # noqa: ANN401
        """Return the maps, or what `_PooledConv` does with weights multiplied by signs [C]."""
        if signs is None:
            return super().forward(input)
        return _PooledConv.apply(input, self.weight * signs.view(-1, 1, 1, 1))


class _NormReLU(nn.BatchNorm2d):
    """Batch normalisation, which can take images and a convolution in place of its maps."""

    synchronised = SyncBatchNorm  # which takes only maps

    def forward(self, input: Tensor, conv: _Conv | None = None) -> Tensor:
        """Return normalised maps; with `conv` those of the images, pooled and after ReLU."""
        if conv is None:
            return super().forward(input)
        # A negative gain makes the smallest value the largest.
        signs = torch.where(self.weight < 0, -1.0, 1.0)
        pooled, mean, variance = conv(input, signs)
        count = input.shape[0] * input.shape[2] * input.shape[3]
        self._track(mean.detach() * signs, variance.detach() * (count / (count - 1)))
        scale = self.weight * signs * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        # This is torch's fastest way to scale and shift channels, and to find both gradients.
        zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
        return F.relu(F.batch_norm(pooled, zeros, ones, scale, shift, eps=0.0), inplace=True)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


class _PooledConv(torch.autograd.Function):
    """Pooled maps [B,C,h,w] of images, and mean and variance [C] of the maps before pooling."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
        images = images.contiguous(memory_format=torch.channels_last)
        pooled = _empty_like_pooled(images, weight)
        means, variances, sizes = [], [], []
        for part, target in _parts(images, weight, pooled):
            maps = F.conv2d(part, weight, padding=1)
            target.copy_(F.max_pool2d(maps, _POOL, _STRIDE))
            mean, variance = torch.batch_norm_update_stats(maps, None, None, 0.0)
            means.append(mean)
            variances.append(variance)
            sizes.append(len(part))
        fractions = images.new_tensor(sizes).unsqueeze(1) / len(images)  # [P,1]
        part_means = torch.stack(means)  # [P,C]
        mean = (fractions * part_means).sum(dim=0)
        variance = (fractions * (torch.stack(variances) + (part_means - mean).square())).sum(dim=0)
        ctx.save_for_backward(images, weight, mean)
        return pooled, mean, variance

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        pooled: Tensor,
        mean: Tensor,
        variance: Tensor,
    ) -> tuple[None, Tensor]:
        """Return the weight's gradient; the arguments are those in the outputs of forward."""
        images, weight, centre = ctx.saved_tensors
        count = images.shape[0] * images.shape[2] * images.shape[3]
        slope = 2 * variance / count
        offset = mean / count - slope * centre
        gradient = torch.zeros_like(weight)
        for part, gradient_of_pooled in _parts(images, weight, pooled):
            maps = F.conv2d(part, weight, padding=1)
            _, indices = F.max_pool2d(maps, _POOL, _STRIDE, return_indices=True)
            into = torch.ops.aten.max_pool2d_with_indices_backward(
                gradient_of_pooled, maps, [_POOL] * 2, [_STRIDE] * 2, [0, 0], [1, 1], False, indices
            )
            into.addcmul_(maps, slope.view(-1, 1, 1)).add_(offset.view(-1, 1, 1))
            gradient += conv2d_weight(part, list(weight.shape), into, padding=1)
        return None, gradient


def _empty_like_pooled(images: Tensor, weight: Tensor) -> Tensor:
    size = [(side - _POOL) // _STRIDE + 1 for side in images.shape[2:]]
    shape = (len(images), len(weight), *size)
    return torch.empty(
        shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last
    )


def _parts(images: Tensor, weight: Tensor, pooled: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Split images and their pooled maps so that the maps of a part are small."""
    map_bytes = len(weight) * images.shape[2] * images.shape[3] * images.element_size()
    size = max(1, _PART_BYTES // map_bytes)
    return zip(images.split(size), pooled.split(size), strict=True)
