"""Differences between the losses of a task's heads on the same batches, with standard errors.

Every step adds its losses, weighted by the number of labels. The weight of a step also grows with
the fifth power of its number, so that the last third of the steps has nine tenths of the weight:
the branches change.

Legend: N tasks, K branches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.grouping.margin import Margin

_RECENT = 4  # step t has the weight t (t + 1) ... (t + _RECENT)
_FEWEST = 8.0  # steps of equal weight that a standard error needs
_PAIRS = ("weight", "square_weight", "loss", "difference", "square_difference", "variation")

PREFIX = "paired_losses."  # of the names of their tensors in a checkpoint


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
        # Without memory before the first step: given groups have none, and perhaps a branch for
        # each of a thousand tasks.
        zero = torch.zeros((), device=device)
        self._pairs = zero.expand(len(_PAIRS), *shape, num_branches)
        self._heads = torch.zeros(2, *shape, device=device)  # weight, and weighted loss
        # Of every head against the best of the branches that are gone: mean, standard error, and
        # the loss of the other.
        self._gone = torch.full((3, *shape), torch.inf, device=device)

    @classmethod
    def of_checkpoint(
        cls, tensors: Mapping[str, Tensor], shape: tuple[int, int], device: torch.device
    ) -> PairedLosses:
        """Return those of a checkpoint, without any step if it has none.

        Args:
            tensors: By name; those of `tensors` with `PREFIX` before their names.
            shape: N and K.
            device: Of the losses.
        """
        paired = {
            name.removeprefix(PREFIX): value
            for name, value in tensors.items()
            if name.startswith(PREFIX)
        }
        losses = cls(*shape, device)
        if paired:
            losses.load(paired)
        return losses

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
        fades = torch.stack([live, live**2, live, live, live**2, live**2])
        square = weight**2
        weighted = weight * losses[:, :, None]
        added = [weight, square, weighted, weight * difference]
        added += [square * difference, square * difference**2]
        self._pairs = self._pairs * fades + torch.stack(added)

    def losses(self) -> Tensor:
        """Return the mean losses [N,K]; NaN for a head without any."""
        weight, total = self._heads
        return torch.where(weight > 0, total / weight, torch.nan)

    def compare(self, branches: Tensor) -> tuple[Tensor, Tensor]:
        """Return by how much the losses of all heads are above that of one head of each task.

        Args:
            branches: The branch of this head, long [N].

        Returns:
            Mean difference and standard error, both [N,K]. The error is infinite for a pair that
            was not computed often enough, and that of the head itself is zero.
        """
        mean, error, _ = self._compare(branches)
        return mean, error

    def _compare(self, branches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `compare` does, and the mean losses of all heads on the same batches."""
        index = branches[None, :, None, None].expand(len(_PAIRS), -1, self._pairs.shape[2], 1)
        sums = self._pairs.gather(3, index)[..., 0]
        weight, square_weight, loss, difference, square, variation = sums
        mean = difference / weight.clamp_min(1e-12)
        steps = weight**2 / square_weight.clamp_min(1e-12)
        spread = (variation - 2 * mean * square + mean**2 * square_weight).clamp_min(0.0)
        error = spread.sqrt() / weight.clamp_min(1e-12) * (steps / (steps - 1).clamp_min(1)).sqrt()
        error = torch.where(steps >= _FEWEST, error, torch.inf)
        return mean, error, loss / weight.clamp_min(1e-12)

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
        if not self._steps:
            return [None] * len(branches)
        chosen = torch.tensor(branches, device=self._pairs.device)
        gone = self._gone.gather(2, chosen[None, :, None].expand(3, -1, 1))
        rivals = torch.cat([self._rivals(chosen), gone], dim=2)
        rivals[0].scatter_(1, chosen[:, None], torch.inf)
        rows = _best(rivals).T.tolist()
        return [Margin(*row) if row[0] < float("inf") else None for row in rows]

    def _rivals(self, chosen: Tensor) -> Tensor:
        """Return how all heads compare with one of each task: as `self._gone` [3,N,K].

        The mean is infinite where a pair was not computed often enough.
        """
        mean, error, loss = self._compare(chosen)
        return torch.stack([torch.where(error.isfinite(), mean, torch.inf), error, loss])

    def drop(self, kept: Sequence[int]) -> None:
        """Remove all branches but these, and remember the best of the others."""
        keep = list(kept)
        gone = [k for k in range(self._pairs.shape[2]) if k not in set(keep)]
        if gone:
            for branch in keep:
                chosen = torch.full_like(self._gone[0, :, 0], branch, dtype=torch.long)
                rival = _best(self._rivals(chosen)[:, :, gone])
                closer = rival[0] < self._gone[0, :, branch]
                self._gone[:, :, branch] = torch.where(closer, rival, self._gone[:, :, branch])
        self._pairs = self._pairs[:, :, keep][..., keep]
        self._heads, self._gone = self._heads[:, :, keep], self._gone[:, :, keep]

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds: nothing before the first step, and finite numbers."""
        if not self._steps:
            return {}
        known = self._gone[:1].isfinite()
        finite = torch.where(known, self._gone, 0.0)
        gone = torch.cat([finite, torch.where(known, 1.0, 0.0)])
        steps = torch.tensor(self._steps)
        return {"pairs": self._pairs, "heads": self._heads, "gone": gone, "steps": steps}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        device = self._pairs.device
        self._steps = int(tensors["steps"])
        self._pairs, self._heads, gone = (
            tensors[name].to(device) for name in ("pairs", "heads", "gone")
        )
        self._gone = torch.where(gone[3:] > 0, gone[:3], torch.inf)


def _best(rivals: Tensor) -> Tensor:
    """Return for every task the rival with the smallest mean [3,N], of rivals [3,N,K]."""
    best = rivals[0].argmin(dim=1)
    return rivals.gather(2, best[None, :, None].expand(3, -1, 1))[..., 0]
