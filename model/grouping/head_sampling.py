"""Sampled heads: every step computes a few heads of each task and estimates the sum over all.

A head is chosen with an inclusion probability pi_nk, by systematic sampling (Madow 1949): exactly
s different heads of every task. What a chosen head adds is divided by pi_nk (Horvitz and Thompson
1952), so that every sum over the heads is unbiased. In the gradient of the logits a running mean
of the losses is a control variate: it replaces the losses of the heads that were not chosen, and
only the difference from it is divided.

The estimates are unbiased given the steps before, for any weights z of the step: the probabilities
and the running mean come from earlier steps, and the choice has random numbers apart from the
noise of z.

Legend: N tasks, K branches, S samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.transfer import copy_to_device

_EXPLORED = 0.5  # fraction of a choice that is uniform over the live heads
_KEPT = 0.9  # weight of the past in the baseline
_STREAM = 2**32  # key of the generator; the Gumbel noise has the ranks as keys, which are smaller

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class HeadSample:
    """The heads that a step computes, the same on every rank, and the estimates made from them.

    Attributes:
        chosen: Bool [N,K].
        branches: Branches with live heads: every step computes all of them.
        factor: 1 / pi of the chosen heads, zero elsewhere, fp32 [N,K] on the device.
        baseline: Expected losses from earlier steps, fp32 [N,K]; NaN for a task without any.
        complete: Whether all heads are chosen for certain, so that nothing is estimated.
    """

    chosen: NDArray[np.bool_]
    branches: tuple[int, ...]
    factor: Tensor
    baseline: Tensor
    complete: bool = False

    @classmethod
    def all_heads(
        cls, heads: Iterable[tuple[int, int]], shape: tuple[int, int], device: torch.device
    ) -> HeadSample:
        """Return the null sample: all heads, with factor 1 and baseline 0.

        Its estimates are the losses themselves, to the last bit.

        Args:
            heads: The heads (task, branch) that there are.
            shape: N and K.
            device: Where losses are.
        """
        chosen = np.zeros(shape, dtype=bool)
        for head in heads:
            chosen[head] = True
        branches = tuple(chosen.any(axis=0).nonzero()[0].tolist())
        factor = torch.from_numpy(chosen.astype(np.float32)).to(device)
        return cls(chosen, branches, factor, torch.zeros(shape, device=device), complete=True)

    @property
    def known(self) -> Tensor:
        """Which tasks have a baseline, bool [N,1].

        Without one, the gradient of the logits would be hundreds of times too big, and so would
        Adam's second moment for a thousand steps.
        """
        return ~self.baseline.isnan().any(dim=1, keepdim=True)

    @property
    def gap(self) -> Tensor | float:
        """Mean number of steps from one loss of a head to the next, as `running_mean` takes it."""
        return 1.0 if self.complete else self.factor

    def weights(self, z: Tensor) -> Tensor:
        """Return the weights of the losses in the objective, of the shape of z.

        The gradient of the objective in the network is, in the mean over the choices, that of all
        heads under z.

        Args:
            z: [N,K], or [N,K,S] for every sample.
        """
        return z * (self.factor if z.ndim == 2 else self.factor.unsqueeze(2))

    def losses(self, losses: Tensor, label_fraction: Tensor) -> Tensor:
        """Return estimates of the losses of all heads, unbiased over the choices.

        For a task without a baseline the mean of its losses in this step is used instead. These
        estimates are biased, and the logits of the task must not follow them: see `known`.

        Args:
            losses: A process's addends to the losses [N,K], or of every sample [N,K,S]; the values
                of heads that were not chosen are not used.
            label_fraction: The fraction of each task's labels that this process has [N].
        """
        baseline, factor = self.baseline * label_fraction[:, None], self.factor
        known = self.known
        if losses.ndim == 3:
            baseline, factor = baseline.unsqueeze(2) / losses.shape[2], factor.unsqueeze(2)
            known = known.unsqueeze(2)
        chosen = factor > 0
        sums = torch.where(chosen, losses, 0.0).sum(dim=1, keepdim=True)
        baseline = torch.where(known, baseline, sums / chosen.sum(dim=1, keepdim=True))
        # With a factor of one this is the loss itself, to the last bit.
        return torch.where(chosen, losses * factor + baseline * (1 - factor), baseline)

    def computed_only(self, losses: Tensor) -> Tensor:
        """Return the losses [N,K], with NaN for heads that were not computed."""
        return torch.where(self.factor > 0, losses, torch.nan)


class HeadSampler:
    """Chooses the heads of every step, and averages their losses.

    Args:
        size: s, the most heads of a task that a step computes.
        seed: Of the run.
        alive: Which heads are alive, bool [N,K].
        device: Where losses are.

    Attributes:
        size: See the argument.
    """

    def __init__(self, size: int, seed: int, alive: Tensor, device: torch.device) -> None:
        self.size = size
        self._seed = seed
        self._device = device
        self._mean = torch.full(alive.shape, torch.nan, device=device)
        self.refresh(alive.float(), alive)

    def refresh(self, probabilities: Tensor, alive: Tensor) -> None:
        """Let the choice follow the tasks' distributions over the live heads, both [N,K].

        This synchronises with the device, so it is not called in every step. The estimates are
        unbiased however old the distributions are.
        """
        live = alive.cpu().numpy()
        even = live / live.sum(axis=1, keepdims=True)
        follows = (1 - _EXPLORED) * probabilities.detach().cpu().double().numpy() * live
        self._set_inclusion(inclusion_probabilities(follows + _EXPLORED * even, self.size))

    def _set_inclusion(self, inclusion: Matrix) -> None:
        self._inclusion = inclusion
        self._branches = tuple(inclusion.any(axis=0).nonzero()[0].tolist())

    def sample_heads(self, step: int) -> HeadSample:
        """Choose the heads of a step: a function of seed, step and inclusion probabilities."""
        key, counter = [self._seed, _STREAM], [0, 0, step, 0]
        generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
        order = generator.random(self._inclusion.shape).argsort(axis=1)
        chosen = systematic_choice(self._inclusion, order, generator.random(len(order)))
        inverse = np.divide(1.0, self._inclusion, where=chosen, out=np.zeros_like(self._inclusion))
        factor = copy_to_device(torch.from_numpy(inverse.astype(np.float32)), self._device)
        return HeadSample(chosen, self._branches, factor, self._baseline())

    def _baseline(self) -> Tensor:
        """Return the mean losses; for a head without any, the mean of its task's other heads."""
        seen = ~self._mean.isnan()
        sums = torch.where(seen, self._mean, 0.0).sum(dim=1, keepdim=True)
        return torch.where(seen, self._mean, sums / seen.sum(dim=1, keepdim=True))

    def record(self, losses: Tensor, head_sample: HeadSample) -> None:
        """Add the losses [N,K] of a step to the baseline; NaN where there is none."""
        self._mean = running_mean(self._mean, losses, _KEPT, head_sample.gap)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds, all [N,K]; NaN for a head without a loss so far."""
        return {"mean_losses": self._mean, "inclusion": torch.from_numpy(self._inclusion)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        self._mean = tensors["mean_losses"].to(self._device)
        self._set_inclusion(tensors["inclusion"].cpu().numpy())


def running_mean(mean: Tensor, losses: Tensor, keep: float, gap: Tensor | float = 1.0) -> Tensor:
    """Return the mean losses after a step.

    Args:
        mean: [N,K]; NaN for a head without a loss so far.
        losses: Of the step [N,K]; NaN for a head without one.
        keep: Weight of the past after one step.
        gap: Mean number of steps from one loss of a head to the next. With it the past decays per
            step, however rarely a head is computed.
    """
    past = keep**gap
    mixed = torch.where(mean.isnan(), losses, past * mean + (1 - past) * losses)
    return torch.where(losses.isnan(), mean, mixed)


def inclusion_probabilities(weights: Matrix, size: int) -> Matrix:
    """Return min(1, c_n * weights), with c_n such that every row sums to `size`.

    Args:
        weights: [N,K], zero for heads that cannot be chosen. A row with at most `size` others
            gives ones for these.
    """
    num_live = (weights > 0).sum(axis=1)
    ordered = -np.sort(-weights, axis=1)
    rest = ordered[:, ::-1].cumsum(axis=1)[:, ::-1]
    left = np.maximum(size - np.arange(weights.shape[1]), 0)
    # With the j largest at one, the others share what is left in proportion to their weights.
    factors = np.divide(left, rest, where=rest > 0, out=np.zeros_like(rest))
    first = (factors * ordered <= 1).argmax(axis=1)
    shared = np.minimum(1.0, factors[np.arange(len(first)), first][:, None] * weights)
    return np.where(num_live[:, None] <= size, (weights > 0).astype(float), shared)


def systematic_choice(
    inclusion: Matrix, order: NDArray[np.int64], starts: Matrix
) -> NDArray[np.bool_]:
    """Choose from every row by systematic sampling (Madow 1949).

    The probabilities are intervals laid end to end; those that contain start, start + 1, ... are
    chosen.

    Args:
        inclusion: [N,K]; every row sums to an integer, the number of heads that it gets.
        order: The order of a task's heads, a permutation in every row [N,K].
        starts: [N], from 0 to below 1.
    """
    ends = np.take_along_axis(inclusion, order, axis=1).cumsum(axis=1)
    ends[:, -1] = ends[:, -1].round()
    hit = np.diff(np.ceil(ends - starts[:, None]), axis=1, prepend=0.0) > 0
    chosen = np.zeros(inclusion.shape, dtype=bool)
    np.put_along_axis(chosen, order, hit, axis=1)
    return chosen
