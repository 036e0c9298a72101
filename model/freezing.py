"""Parts of a network that are left as they are while the rest is trained."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from typing_extensions import Self


class Freezable(nn.Module):
    """A module whose parts can be frozen."""

    _frozen: tuple[nn.Module, ...] = ()

    def freeze(self, parts: Iterable[nn.Module]) -> None:
        """Freeze some parts, and keep them in evaluation mode: their statistics stay, too."""
        self._frozen = tuple(parts)
        for part in self._frozen:
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all that is not frozen."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self
