"""What every encoder looks like to the network: a shared trunk and K branches of one shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Init = Literal["independent", "copies"]
Pool = Literal["flatten", "mean"]


@dataclass
class Encoder:
    """A trunk and the branches behind it.

    Attributes:
        trunk: From images [B,3,H,W] to the input of the branches; identity where nothing is
            shared.
        branches: K modules, each from the trunk's output to a feature map
            [B,channels,*spatial].
        in_channels: Channels of an image; 3, unless it is not a picture.
        channels: Channels of the feature map.
        spatial: Height and width of the feature map.
        pool: How a feature map becomes the feature vector of a linear head.
        init: Whether branches (and the heads of a task) start different or as copies.
        config: Keyword arguments of `build_encoder`, as JSON can hold them, that rebuild the
            architecture with any number of branches and without any other file.
        image_mean: Per channel of an image scaled to 0..1, as pretrained weights expect it; None
            where they do not say, or there are none.
        image_std: See `image_mean`.
    """

    trunk: nn.Module
    branches: list[nn.Module]
    in_channels: int
    channels: int
    spatial: tuple[int, int]
    pool: Pool
    init: Init
    config: dict[str, Any]
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None


@torch.no_grad()
def output_shape(trunk: nn.Module, branch: nn.Module, shape: tuple[int, int, int]) -> torch.Size:
    """Return the shape [1,C,h,w] of a branch's output, found by running it on zeros.

    Args:
        shape: Of an image, [C,H,W].

    Raises:
        ValueError: If the output is not a feature map.
    """
    modules = (trunk, branch)
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    output: Tensor = branch(trunk(torch.zeros(1, *shape)))
    for module, mode in zip(modules, modes, strict=True):
        module.train(mode)
    if output.ndim != 4:
        raise ValueError(
            f"model.encoder gives features of shape {tuple(output.shape)}, "
            "must be a feature map [B,C,H,W]"
        )
    return output.shape
