"""The published training step: one module for every head, and a loop over the heads.

It has K encoders and N*K heads, computes the losses sequentially in fp32, differentiates through
the relaxed Categorical, and updates all parameters with one Adam. `dmtg bench step` compares this
project's step with it.

Legend: N tasks, K branches, B batch, C channels, D features, H, W.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


class ResidualBlock(nn.Module):
    """Two convolutions with batch normalisation and a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return feature maps of the same shape."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + x)


class Residual64(nn.Module):
    """The published encoder for images of 64 pixels."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.block = ResidualBlock(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map [B,C,h,w] of images [B,3,H,W]."""
        x = F.max_pool2d(F.relu(self.bn(self.conv(x))), 3, stride=2)
        return F.avg_pool2d(self.block(x), 2)


class LinearHead(nn.Module):
    """A head that computes one logit from the flattened feature map."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B]."""
        return self.linear(x.flatten(1)).squeeze(1)


class DenseHead(nn.Module):
    """The published decoder: transposed convolutions to 16 times the size of the feature map."""

    widths = (128, 64, 48, 32)

    def __init__(self, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.image_size = image_size
        layers: list[nn.Module] = []
        for stage, width in enumerate(self.widths):
            layers += [nn.ConvTranspose2d(channels, width, 2, stride=2)]
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            if stage < len(self.widths) - 1:
                layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B,1,H,W]."""
        x = self.last(self.layers(x))
        if x.shape[-2:] != self.image_size:
            x = F.interpolate(x, size=self.image_size, mode="bilinear")
        return x


class NaiveNetwork(nn.Module):
    """K encoders, N*K heads and the logits of the grouping.

    Args:
        encoders: Encoders of the K branches.
        heads: The K heads of every task.
    """

    def __init__(self, encoders: Sequence[nn.Module], heads: Sequence[Sequence[nn.Module]]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.heads = nn.ModuleList(nn.ModuleList(of_task) for of_task in heads)
        self.logits = nn.Parameter(torch.ones(len(heads), len(encoders)))

    def head(self, task: int, branch: int) -> nn.Module:
        """Return the head of a task on a branch."""
        of_task = self.heads[task]
        assert isinstance(of_task, nn.ModuleList)
        return of_task[branch]

    def objective(
        self, images: Tensor, labels: Sequence[Tensor], noise: Tensor, tau: float, loss_of: Loss
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the weighted sum of all losses, and the losses ordered by task, then by branch.

        Args:
            images: Normalised images [B,3,H,W].
            labels: Labels of each task, [B] or [B,1,H,W].
            noise: Standard Gumbel noise [N,K].
            tau: Temperature of the relaxation.
            loss_of: Function that returns the loss of a prediction and its labels.
        """
        features = [encoder(images) for encoder in self.encoders]
        weights = F.softmax((self.logits + noise) / tau, dim=1)
        total = images.new_zeros(())
        losses = []
        for task, heads in enumerate(self.heads):
            assert isinstance(heads, nn.ModuleList)
            for branch, head in enumerate(heads):
                loss = loss_of(head(features[branch]), labels[task])
                total = total + weights[task, branch] * loss
                losses.append(loss.detach())
        return total, losses


class NaiveTrainer:
    """Train a `NaiveNetwork`; without a learning rate, compute only forward and backward passes."""

    def __init__(self, network: NaiveNetwork, loss_of: Loss, lr: float | None) -> None:
        self.network = network
        self._loss_of = loss_of
        self._optimizer = None if lr is None else torch.optim.Adam(network.parameters(), lr=lr)

    def step(
        self, images: Tensor, labels: Sequence[Tensor], noise: Tensor, tau: float
    ) -> list[Tensor]:
        """Execute a step and return the losses of all heads, see `NaiveNetwork.objective`."""
        self.network.zero_grad()
        total, losses = self.network.objective(images, labels, noise, tau, self._loss_of)
        total.backward()
        if self._optimizer is not None:
            self._optimizer.step()
        return losses
