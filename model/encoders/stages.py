"""Trunk and branch of an encoder whose stages feed each other one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from model.encoders.family import Parts


def split_stages(stages: Sequence[nn.Module], trunk_depth: int, encoder: str) -> Parts:
    """Return a trunk of the first `trunk_depth` stages and a branch of the others.

    Args:
        stages: From the images to the feature map.
        trunk_depth: Smaller than their number.
        encoder: What they are of, for the message.

    Raises:
        ValueError: If there are not more stages than `trunk_depth`.
    """
    if trunk_depth not in range(len(stages)):
        raise ValueError(
            f"model.trunk_depth is {trunk_depth!r}, must be from 0 to {len(stages) - 1} "
            f"for this {encoder}"
        )
    trunk = nn.Sequential(*stages[:trunk_depth]) if trunk_depth else nn.Identity()
    return Parts(trunk, nn.Sequential(*stages[trunk_depth:]))


def drop_unused(parts: Parts, image_size: tuple[int, int], encoder: str) -> None:
    """Remove parameters that the output does not depend on (mask tokens, norms of other outputs).

    DDP and ZeRO wait for a gradient of every parameter.

    Args:
        parts: Are run on an image, in evaluation mode.
        image_size: H and W.
        encoder: What they are of, for the message.

    Raises:
        ValueError: If the output depends on a parameter that has no gradient.
    """
    trunk, branch = parts
    both = nn.ModuleList(parts)
    both.eval()
    images = torch.rand(1, 3, *image_size, generator=torch.Generator().manual_seed(0))
    output = branch(trunk(images))
    parameters = dict(both.named_parameters())
    gradients = torch.autograd.grad(output.sum(), list(parameters.values()), allow_unused=True)
    unused = [name for name, grad in zip(parameters, gradients, strict=True) if grad is None]
    for name in unused:
        owner, _, attribute = name.rpartition(".")
        setattr(both.get_submodule(owner), attribute, None)
    if unused and not output.is_meta:
        with torch.no_grad():
            same = torch.allclose(branch(trunk(images)), output, rtol=1e-3, atol=1e-5)
        if not same:
            raise ValueError(f"model.encoder {encoder} needs {unused[0]} but does not train it")
    both.train()
