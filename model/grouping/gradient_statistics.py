"""Gradient statistics of tasks in the last layer of each branch, for their affinities.

A head's residual is the gradient of its task's loss in its predictions. Correlated with the inputs
of the branch's last layer it is the task's gradient in that layer, up to the head's own weights
(as in Grad-TAG, arXiv 2409.06091, with the last shared layer in place of all). All statistics are
sums over samples: they may be added over batches and processes.

Legend: K branches, B batch, P positions of a coarse grid of h x w, D features, F features kept,
R residuals (outputs of all tasks), m heads, O outputs, H, W image size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from types import TracebackType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from model.heads.head_losses import Predictions
from model.heads.layout import HeadSelection
from model.losses.loss import get_loss
from model.rows import take
from model.tasks.targets import Targets
from model.transfer import copy_to_device

_GRID = 4  # positions on a side: enough to tell left from right, few enough to average over
_MAX_FEATURES = 256

GradientStatistics = dict[str, Tensor]


class ActivationHook:
    """Keeps the input of the linear layer or convolution that each module ran last."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = modules
        self._handles: list[RemovableHandle] = []
        self._inputs: dict[int, Tensor] = {}

    def __enter__(self) -> ActivationHook:
        for index, module in enumerate(self._modules):
            for layer in module.modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d)):
                    hook = self._hook(index)
                    self._handles.append(layer.register_forward_pre_hook(hook))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            features = inputs[0].detach()
            if isinstance(layer, nn.Linear) and features.ndim == 4:  # channels come last
                features = features.movedim(3, 1)
            elif features.ndim == 3:  # tokens have no grid that holds for every family
                features = features.mean(dim=1)
            self._inputs[index] = features

        return hook

    def features(self, index: int) -> Tensor:
        """Return the input of a module's last layer, fp32 [B,h,w,D]; h = w = 1 for a vector."""
        features = self._inputs[index].float()
        if features.ndim == 2:
            return features[:, None, None]
        height, width = features.shape[2:]
        coarse = F.adaptive_avg_pool2d(features, (min(_GRID, height), min(_GRID, width)))
        return coarse.permute(0, 2, 3, 1)


@torch.no_grad()
def branch_statistics(
    loss_of: Mapping[str, str],
    predictions: Predictions,
    targets: Mapping[str, Targets],
    selection: HeadSelection,
    hook: ActivationHook,
) -> GradientStatistics:
    """Return the `statistic_sums` of one batch, stacked over the K branches.

    A head that is not computed adds nothing. Affinities do not depend on scale, so they stay
    unbiased as long as all heads of a task are equally likely to be computed.

    Args:
        loss_of: Name of the loss of every stack.
        predictions: Of the heads of the selection, with one or more for every task.
        selection: Of all branches.
        hook: Was open while the branches were computed.
    """
    places = _residual_places(predictions, targets)
    branches = []
    for branch in range(len(selection.branches)):
        features = hook.features(branch)
        grid = (features.shape[1], features.shape[2])
        rows = [features.new_zeros(0, len(features), math.prod(grid))]
        row_places = [features.new_zeros(0, dtype=torch.long)]
        # Exact sums in any precision of the network.
        with torch.autocast(features.device.type, enabled=False):
            for name, stack in selection.stacked_heads.items():
                tasks = stack.tasks[branch]
                if tasks is not None:
                    prediction, target = predictions[name][branch], targets[name].select(tasks)
                    rows.append(residuals(loss_of[name], prediction, target, grid))
                    row_places.append(take(places[name], tasks).flatten())
            sums = statistic_sums(features.flatten(1, 2), torch.cat(rows))
        num_residuals = sum(place.numel() for place in places.values())
        for name in ("residuals", "products"):
            everything = sums[name].new_zeros(num_residuals, sums[name].shape[1])
            sums[name] = everything.index_copy(0, torch.cat(row_places), sums[name])
        branches.append(sums)
    return stack_statistics(branches)


def _residual_places(predictions: Predictions, targets: Mapping[str, Targets]) -> dict[str, Tensor]:
    """Return per stack the places of its tasks' residuals among all R, long [n,O]."""
    places, first = {}, 0
    for name, of_branches in predictions.items():
        outputs = next(p.shape[2] for p in of_branches if p is not None)
        valid = targets[name].valid
        size = len(valid) * outputs
        places[name] = torch.arange(first, first + size, device=valid.device).view(-1, outputs)
        first += size
    return places


def residuals(loss: str, prediction: Tensor, targets: Targets, grid: tuple[int, int]) -> Tensor:
    """Return the gradient of every sample's loss in the predictions of m heads.

    Args:
        loss: Name of the loss.
        prediction: [m,B,O] or [m,B,O,H,W].
        grid: h and w of the features they will be correlated with.

    Returns:
        fp32 [m*O,B,P]; zero for a sample without a label.
    """
    leaf = prediction.detach().float().requires_grad_()
    with torch.enable_grad():
        total = get_loss(loss).sample_losses(leaf, targets).sum()
        (gradient,) = torch.autograd.grad(total, leaf)
    if gradient.ndim == 3:
        cells = gradient[..., None].expand(-1, -1, -1, math.prod(grid))
    else:
        pooled = F.adaptive_avg_pool2d(gradient.flatten(0, 1), grid)
        cells = pooled.flatten(2).unflatten(0, gradient.shape[:2])
    return cells.transpose(1, 2).flatten(0, 1)


def statistic_sums(features: Tensor, rows: Tensor) -> GradientStatistics:
    """Return the sums over the samples of one branch.

    Args:
        features: [B,P,D], projected at random to at most 256 numbers.
        rows: Residuals [R,B,P].

    Returns:
        `count` [], `features` [P,F], `residuals` [R,P], `products` [R,F] (residual x features,
        over all positions) and `second` [F,F], the second moments of the features.
    """
    projected = torch.einsum("bpd,pdf->bpf", features, _projection(features))
    whole = projected.sum(dim=1)
    return {
        "count": torch.full((), float(len(features)), device=features.device),
        "features": projected.sum(dim=0),
        "residuals": rows.sum(dim=1),
        "products": torch.einsum("rbp,bpf->rf", rows, projected),
        "second": whole.T @ whole,
    }


def _projection(features: Tensor) -> Tensor:
    """Return [P,D,F]: the identity, or the same random one on every process."""
    _, positions, width = features.shape
    size = positions * width
    if size <= _MAX_FEATURES:
        return torch.eye(size, device=features.device).view(positions, width, size)
    # The planner's `FakeTensor` must not remain in the cache.
    draw = _random_projection if type(features) is Tensor else _random_projection.__wrapped__
    return draw(positions, width, features.device)


@lru_cache(maxsize=1)  # the same for all branches and steps: it takes longer than a branch
def _random_projection(positions: int, width: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(positions * width)
    random = torch.randn(positions, width, _MAX_FEATURES, generator=generator)
    return copy_to_device(random, device) / math.sqrt(_MAX_FEATURES)


def stack_statistics(branches: Sequence[Mapping[str, Tensor]]) -> GradientStatistics:
    """Stack the sums of K branches along a new first axis."""
    return {name: torch.stack([sums[name] for sums in branches]) for name in branches[0]}
