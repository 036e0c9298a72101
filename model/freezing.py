"""Parts of a network that stay as they are while the rest is trained."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


class FrozenParts:
    """Modules without gradients that stay in evaluation mode, so that no statistics change.

    Args:
        parts: The modules; their parameters no longer require gradients.
    """

    def __init__(self, parts: Iterable[nn.Module] = ()) -> None:
        self._parts = tuple(parts)
        for part in self._parts:
            part.requires_grad_(False)

    def eval(self) -> None:
        """Set evaluation mode; call it after the mode of the whole network was set."""
        for part in self._parts:
            part.eval()
