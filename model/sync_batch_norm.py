"""Batch normalisation with the statistics of the batches of all ranks.

`torch.nn.SyncBatchNorm` (torch 2.13, `torch/nn/modules/_functions.py`) indexes the gathered counts,
means and deviations with a boolean mask, to leave out ranks with an empty batch. The shape of the
result depends on the mask, so the host waits for the device three times in every layer. No rank of
a training step has an empty batch, so no mask is needed.

Legend: R ranks, B batch, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

# torch 2.13 has a new name for it, and warns of the old one.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation over the default process group; ranks may have batches of other sizes.

    `synchronise` makes it of other batch normalisations. In evaluation mode it is one of them.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Check nothing: the class that it was made of accepts other inputs."""

    def forward(self, input: Tensor) -> Tensor:
        """Return normalised maps [B,C,...]; every rank must call it.

        Raises:
            ValueError: The batch is empty.
        """
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        if not input.numel():
            raise ValueError(f"input has shape {tuple(input.shape)}, must hold a sample")
        maps, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._track(mean, variance * (count / (count - 1)))
        return maps

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of the batches."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # Without a momentum they are the mean over all batches.
        weight = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(variance.to(self.running_var.dtype), weight)


class SyncBatchNormAct(SyncBatchNorm):
    """A batch normalisation with dropout and activation after it, as timm's `BatchNormAct2d`.

    Attributes:
        drop: The dropout.
        act: The activation.
    """

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Return activations of the normalised maps [B,C,...]; every rank must call it."""
        return self.act(self.drop(super().forward(input)))


def synchronise(network: nn.Module) -> None:
    """Let all batch normalisations of a network have the statistics of all ranks.

    Parameters, buffers and their names stay. A layer whose class computes something else besides
    stays as it is, unless that is an activation, or the class has an attribute `synchronised`: the
    class that the layer gets.
    """
    for layer in network.modules():
        if not isinstance(layer, _BatchNorm):
            continue
        own: type[_BatchNorm] | None = getattr(type(layer), "synchronised", None)
        if own is not None:
            layer.__class__ = own
        elif type(layer).forward is _BatchNorm.forward:
            layer.__class__ = SyncBatchNorm
        elif isinstance(getattr(layer, "act", None), nn.Module) and hasattr(layer, "drop"):
            layer.__class__ = SyncBatchNormAct


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the maps, mean and variance [C] of all ranks, and their number of values []."""
        input = input.contiguous(memory_format=_layout(input))
        means, variances, counts = _gathered_statistics(input)
        count = counts.sum()
        fractions = counts / count  # [R,1]
        mean = (fractions * means).sum(dim=0)
        variance = (fractions * (variances + (means - mean).square())).sum(dim=0)
        ctx.save_for_backward(input, weight, mean, (variance + eps).rsqrt(), counts)
        ctx.mark_non_differentiable(mean, variance, count)
        maps = F.batch_norm(input, mean, variance, weight, bias, training=False, eps=eps)
        return maps, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        maps: Tensor,
        *_: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Return the gradients; `maps` is the gradient in the normalised maps.

        Those of weight and bias are sums over this rank's batch, as of all other parameters.
        """
        input, weight, mean, inverse, counts = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, _ = ctx.needs_input_grad
        maps = maps.contiguous(memory_format=_layout(input))
        sums, into_weight, into_bias = _sums(maps, input, weight, mean, inverse)
        into_input = None
        if needs_input:
            dist.all_reduce(sums)
            into_input = _into_input(maps, input, weight, mean, inverse, sums, counts)
        return (
            into_input,
            into_weight if needs_weight else None,
            into_bias if needs_bias else None,
            None,
        )


def _layout(maps: Tensor) -> torch.memory_format:
    channels_last = maps.ndim == 4 and maps.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _gathered_statistics(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return every rank's means and variances [R,C] and its number of values per channel [R,1]."""
    if input.device.type == "cpu" or torch.compiler.is_compiling():
        # In a kernel for a GPU, they are computed in fp32 at least.
        input = input.to(torch.promote_types(input.dtype, torch.float32))
    if torch.compiler.is_compiling():  # torch 2.13 cannot trace the operation below
        variance, mean = torch.var_mean(input, dim=[0, *range(2, input.ndim)], correction=0)
    else:
        mean, variance = torch.batch_norm_update_stats(input, None, None, 0.0)
    count = mean.new_full((1,), input.numel() // input.shape[1])
    local = torch.cat([mean, variance, count])
    size = dist.get_world_size()
    everything = local.new_empty(size * len(local))
    _gather(everything, local)
    means, variances, counts = everything.view(size, -1).split([len(mean), len(mean), 1], dim=1)
    return means, variances, counts


def _sums(
    maps: Tensor, input: Tensor, weight: Tensor | None, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return what a rank adds to the sums that all gradients need, and those of its parameters.

    Args:
        maps: Gradient in the normalised maps.
        inverse: One over the standard deviation [C].

    Returns:
        The sums [2,C] of `maps` and of `maps * (input - mean)`, the gradients in weight and bias.
    """
    if _has_kernels(maps):
        scales = weight is not None
        of_maps, of_products, into_weight, into_bias = torch.batch_norm_backward_reduce(
            maps, input, mean, inverse, weight, True, scales, scales
        )
        return torch.stack([of_maps, of_products]), into_weight, into_bias
    maps, others = maps.to(mean.dtype), [0, *range(2, maps.ndim)]
    products = maps * (input - _per_channel(mean, input))
    of_maps, of_products = maps.sum(dim=others), products.sum(dim=others)
    return torch.stack([of_maps, of_products]), of_products * inverse, of_maps


def _into_input(
    maps: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    sums: Tensor,
    counts: Tensor,
) -> Tensor:
    """Return the gradient in the input.

    Args:
        maps: Gradient in the normalised maps.
        inverse: One over the standard deviation [C].
        sums: Of all ranks, see `_sums`.
        counts: Number of values per channel of every rank [R,1].
    """
    scale = torch.ones_like(mean) if weight is None else weight.to(mean.dtype)
    if _has_kernels(maps):
        numbers = counts.flatten().to(torch.int32)
        return torch.batch_norm_backward_elemt(
            maps, input, mean, inverse, scale, sums[0], sums[1], numbers
        )
    of_maps, of_products = sums / counts.sum()
    offset, slope = (_per_channel(v, input) for v in (of_maps, of_products * inverse.square()))
    centred = maps - offset - (input - _per_channel(mean, input)) * slope
    return (centred * _per_channel(scale * inverse, input)).to(input.dtype)


def _has_kernels(maps: Tensor) -> bool:
    """Return whether to use the kernels of `torch.nn.SyncBatchNorm`, which cannot be traced."""
    return maps.device.type == "cuda" and not torch.compiler.is_compiling()


def _per_channel(values: Tensor, maps: Tensor) -> Tensor:
    """Return one value per channel [C], shaped to broadcast over maps [B,C,...]."""
    return values.view(1, -1, *[1] * (maps.ndim - 2))
