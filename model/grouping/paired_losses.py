"""Differences between the losses of a task's heads on the same batches, with standard errors.

Every step adds its losses, weighted by the number of labels. The weight of a step also grows with
a power of its number, so that about the last third of the steps counts: the branches change.

Legend: N tasks, K branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SIGNIFICANT = 3.0  # standard errors from which a difference is no chance
_RECENT = 4  # the power of its number that weights a step
_FEWEST = 8.0  # steps of equal weight that a standard error needs
_PAIRS = ("weight", "square_weight", "difference", "square_difference", "variation")


@dataclass(frozen=True)
class Margin:
    """How much better a task's head is than the best of its other heads, in the task's loss.

    Attributes:
        mean: Mean difference of the losses on the same batches; above zero the head is better.
        standard_error: Of this mean.
        loss: Mean loss of the head on these batches.
    """

    mean: float
    standard_error: float
    loss: float

    @property
    def significant(self) -> bool:
        """Whether the head is better beyond chance."""
        return self.mean > SIGNIFICANT * self.standard_error

    @property
    def relative(self) -> float:
        """The mean as a fraction of the other head's loss."""
        other = self.loss + self.mean
        return self.mean / other if other > 0 else 0.0


class PairedLosses:
    """Weighted sums over the steps, for every task and pair of branches.

    Args:
        num_tasks: N.
        num_branches: K.
        device: Of the losses.
    """

    def __init__(self, num_tasks: int, num_branches: int, device: torch.device) -> None:
        shape = (num_tasks, num_branches)
        self._steps = 0
        self._pairs = torch.zeros(len(_PAIRS), *shape, num_branches, device=device)
        self._heads = torch.zeros(2, *shape, device=device)  # weight, and weighted loss
        # Of every head against the best of the branches that are gone: mean, standard error.
        self._gone = torch.full((2, *shape), torch.inf, device=device)

    def add(self, losses: Tensor, label_counts: Tensor, alive: Tensor) -> None:
        """Add the losses of a step.

        Args:
            losses: [N,K]; NaN for a head that was not computed and a task without a label.
            label_counts: Labels of the batch [N].
            alive: Bool [N,K]; the sums of a pair stay as they are once one of its heads is off.
        """
        self._steps += 1
        past = max(0.0, 1 - (_RECENT + 1) / (self._steps + _RECENT))
        known = ~losses.isnan()
        losses = torch.where(known, losses, 0.0)
        weight = label_counts.to(losses)[:, None] * known
        live = torch.where(alive, past, 1.0)
        self._heads = self._heads * live + torch.stack([weight, weight * losses])
        live = torch.where(alive[:, :, None] & alive[:, None, :], past, 1.0)
        weight = weight[:, :, None] * known[:, None, :]
        difference = losses[:, :, None] - losses[:, None, :]
        # Sums with squared weights lose the square of the past weight.
        fades = torch.stack([live, live**2, live, live**2, live**2])
        square = weight**2
        added = [weight, square, weight * difference, square * difference, square * difference**2]
        self._pairs = self._pairs * fades + torch.stack(added)

    def losses(self) -> Tensor:
        """Return the mean losses [N,K]; NaN for a head without any."""
        weight, total = self._heads
        return torch.where(weight > 0, total / weight.clamp_min(1e-12), torch.nan)

    def compare(self, branches: Tensor) -> tuple[Tensor, Tensor]:
        """Return by how much the losses of all heads are above that of one head of each task.

        Args:
            branches: The branch of this head, long [N].

        Returns:
            Mean difference and standard error, both [N,K]. The error is infinite for a pair that
            was not computed often enough, and that of the head itself is zero.
        """
        index = branches[None, :, None, None].expand(len(_PAIRS), -1, self._pairs.shape[2], 1)
        weight, square_weight, difference, square, variation = self._pairs.gather(3, index)[..., 0]
        mean = difference / weight.clamp_min(1e-12)
        steps = weight**2 / square_weight.clamp_min(1e-12)
        spread = (variation - 2 * mean * square + mean**2 * square_weight).clamp_min(0.0)
        error = spread.sqrt() / weight.clamp_min(1e-12) * (steps / (steps - 1).clamp_min(1)).sqrt()
        return mean, torch.where(steps >= _FEWEST, error, torch.inf)

    def compare_through_others(self, branches: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `compare` does, by way of a third head for two that rarely met in a step.

        With sampled heads, a task that has just moved has pairs with its former head only. The
        differences of two heads to a third come from different steps, so that their variances add.
        Of all third heads, the one that gives the smallest error is used.

        Args:
            branches: As for `compare`.
        """
        mean, error = self.compare(branches)
        num_branches = self._pairs.shape[2]
        thirds = torch.arange(num_branches, device=branches.device)
        means, errors = torch.vmap(self.compare)(thirds[:, None].expand(-1, len(branches)))
        index = branches[None, :, None].expand(num_branches, -1, 1)
        means, variances = means - means.gather(2, index), errors.square()
        variances = variances + variances.gather(2, index)
        best = variances.argmin(dim=0, keepdim=True)
        known = error.isfinite()
        return (
            torch.where(known, mean, means.gather(0, best)[0]),
            torch.where(known, error, variances.gather(0, best)[0].sqrt()),
        )

    def margins(self, branches: Sequence[int]) -> list[Margin | None]:
        """Return how much better each task's head is than the best other, on the host.

        Args:
            branches: The branch of the head for every task.

        Returns:
            None for a task whose heads were not compared often enough.
        """
        chosen = torch.tensor(branches, device=self._pairs.device)
        mean, error = self.compare(chosen)
        gone = self._gone.gather(2, chosen[None, :, None].expand(2, -1, 1))
        mean, error = torch.cat([mean, gone[0]], dim=1), torch.cat([error, gone[1]], dim=1)
        mean = torch.where(error.isfinite(), mean, torch.inf)
        mean.scatter_(1, chosen[:, None], torch.inf)
        best = mean.argmin(dim=1, keepdim=True)
        loss = self.losses().gather(1, chosen[:, None])
        rows = torch.cat([mean.gather(1, best), error.gather(1, best), loss], dim=1)
        return [Margin(*row) if row[0] < float("inf") else None for row in rows.tolist()]

    def drop(self, kept: Sequence[int]) -> None:
        """Remove all branches but these, and remember the best of the others."""
        keep = list(kept)
        gone = [k for k in range(self._pairs.shape[2]) if k not in set(keep)]
        if gone:
            for branch in range(self._pairs.shape[2]):
                mean, error = self.compare(torch.full_like(self._gone[0, :, 0], branch).long())
                mean = torch.where(error.isfinite(), mean, torch.inf)[:, gone]
                best = mean.argmin(dim=1, keepdim=True)
                rival = torch.stack([mean, error[:, gone]]).gather(2, best.expand(2, -1, 1))[..., 0]
                closer = rival[0] < self._gone[0, :, branch]
                self._gone[:, :, branch] = torch.where(closer, rival, self._gone[:, :, branch])
        self._pairs = self._pairs[:, :, keep][..., keep]
        self._heads, self._gone = self._heads[:, :, keep], self._gone[:, :, keep]

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds."""
        steps = torch.tensor(self._steps)
        return {"pairs": self._pairs, "heads": self._heads, "gone": self._gone, "steps": steps}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        device = self._pairs.device
        self._steps = int(tensors["steps"])
        self._pairs, self._heads, self._gone = (
            tensors[name].to(device) for name in ("pairs", "heads", "gone")
        )
