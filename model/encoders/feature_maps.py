"""Modules that turn the output of a library's layers into feature maps.

Legend: B batch, T tokens, C channels, h, w feature size.
"""

from __future__ import annotations

from torch import Tensor, nn


class TokensToMap(nn.Module):
    """The normalised patch tokens of a transformer [B,P+T,C] as a map [B,C,h,w].

    Args:
        norm: Applied to all tokens.
        grid: h and w.
        num_prefix_tokens: P, tokens before the patches, such as the class token.
    """

    def __init__(self, norm: nn.Module, grid: tuple[int, int], num_prefix_tokens: int = 1) -> None:
        super().__init__()
        self.norm = norm
        self.grid = grid
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the map of the tokens."""
        patches = self.norm(tokens)[:, self.num_prefix_tokens :]
        return patches.transpose(1, 2).unflatten(2, self.grid)


class ChannelsFirst(nn.Module):
    """A map [B,h,w,C] as [B,C,h,w]."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the map with its channels before its pixels."""
        return maps.permute(0, 3, 1, 2)
