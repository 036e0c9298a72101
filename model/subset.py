"""Networks that can be cut down to some of their heads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from model.heads.layout import Head, HeadLayout, used_branches


class Cuttable(nn.Module):
    """A network of branches and stacked heads that its configuration can rebuild smaller."""

    _layout: HeadLayout
    image_mean: Tensor

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return a description that JSON can hold, to rebuild the network without weights."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the network that `config` described, with new random weights."""

    def subset(self, heads: Iterable[Head]) -> Self:
        """Return a new network of these heads and their branches, which are renumbered.

        The weights are copied; `used_branches(heads)` are the old numbers of its branches.
        """
        heads = tuple(heads)
        # Its random weights are overwritten; the caller's random state is to stay as it is.
        with torch.random.fork_rng(devices=[]):
            network = self.from_config(self.subset_config(heads))
        network.load_state_dict(self.subset_state(self.state_dict(), heads))
        return network.to(self.image_mean.device).train(self.training)

    def subset_config(self, heads: Iterable[Head]) -> dict[str, Any]:
        """Return `config()` of what `subset` returns, without a look at the weights."""
        kept = self._layout.select(heads, self.image_mean.device)
        branches = {old: new for new, old in enumerate(kept.branches)}
        return {
            **self.config(),
            "num_branches": len(branches),
            "heads": [[task, branches[branch]] for task, branch in kept.heads],
        }

    def subset_state(self, state: Mapping[str, Tensor], heads: Iterable[Head]) -> dict[str, Tensor]:
        """Cut tensors kept by parameter name (weights, moments) as `subset` cuts the network.

        Args:
            state: Any of this network's parameters or buffers, by their names.
            heads: As given to `subset`.
        """
        heads = tuple(heads)
        branches = {str(old): str(new) for new, old in enumerate(used_branches(heads))}
        rows = self._layout.kept_rows(heads)
        cut = {}
        for name, tensor in state.items():
            part, _, rest = name.partition(".")
            key, _, attribute = rest.partition(".")
            if part == "stacked_heads":
                index = torch.tensor(rows[key], dtype=torch.long, device=tensor.device)
                cut[name] = tensor.index_select(0, index)
            elif part != "branches":
                cut[name] = tensor
            elif key in branches:
                cut[f"branches.{branches[key]}.{attribute}"] = tensor
        return cut
