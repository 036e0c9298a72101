"""Sampled heads: every step computes a few heads of each task and stands for all of them.

A head is chosen with an inclusion probability pi_nk, by systematic sampling (Madow 1949): exactly
s different heads of every task. What a chosen head adds is divided by pi_nk (Horvitz and Thompson
1952), so that any sum over the heads is right on average. In the gradient of the logits a running
mean of the losses is a control variate: it stands for the heads that were not chosen, and only
the difference from it is divided.

All of this holds given everything before the step, and for any weights z of it: the probabilities
and the running mean come from steps before, and the choice from a stream of its own, never from
the noise that z is made of.

Legend: N tasks, K branches, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_EXPLORED = 0.5  # share of a choice that does not follow the distributions
_KEPT = 0.9  # weight of the past in the baseline
_STREAM = 2**32  # beyond every rank, whose numbers are the keys of the Gumbel noise

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class HeadSample:
    """The heads of one step, the same on every process, and how they stand for all.

    Attributes:
        chosen: Bool [N,K].
        branches: Those that have live heads: all of them are computed in every step.
        factor: 1 / pi of the chosen heads, zero elsewhere, fp32 [N,K] on the device.
        baseline: Expected losses, from steps before, fp32 [N,K]; zero for a task without any.
    """

    chosen: NDArray[np.bool_]
    branches: tuple[int, ...]
    factor: Tensor
    baseline: Tensor

    @property
    def known(self) -> Tensor:
        """Which tasks have a baseline, bool [N,1].

        Without one, the gradient of the logits would be hundreds of times too big, and so would
        Adam's second moment for a thousand steps.
        """
        return self.baseline.any(dim=1, keepdim=True)

    def weights(self, z: Tensor) -> Tensor:
        """Return what the losses of the heads are multiplied by in the objective, shaped as z.

        Its gradient in the weights equals that of all heads under z on average over the choice.

        Args:
            z: [N,K], or [N,K,S] for every sample.
        """
        return z * (self.factor if z.ndim == 2 else self.factor.unsqueeze(2))

    def losses(self, losses: Tensor, share: Tensor) -> Tensor:
        """Return losses of all heads that equal the true ones on average over the choice.

        For a task without a baseline the mean of its losses in this step takes its place, which
        leaves a bias. Its logits had better stay: see `known`.

        Args:
            losses: A process's addends to the losses [N,K], or of every sample [N,K,S]; those of
                heads that were not chosen do not matter.
            share: The part of each task's labels that this process has [N].
        """
        baseline, factor = self.baseline * share[:, None], self.factor
        known = self.known
        if losses.ndim == 3:
            baseline, factor = baseline.unsqueeze(2) / losses.shape[2], factor.unsqueeze(2)
            known = known.unsqueeze(2)
        chosen = factor > 0
        own = torch.where(chosen, losses, 0.0).sum(dim=1, keepdim=True)
        baseline = torch.where(known, baseline, own / chosen.sum(dim=1, keepdim=True))
        # With a factor of one this is the loss itself, to the last bit.
        return torch.where(chosen, losses * factor + baseline * (1 - factor), baseline)


class HeadSampler:
    """Chooses the heads of every step, and remembers what losses they had.

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
        self._mean = torch.full(alive.shape, torch.nan, device=device)  # NaN: no loss so far
        self.refresh(alive.float(), alive)

    def refresh(self, probabilities: Tensor, alive: Tensor) -> None:
        """Let the choice follow the tasks' distributions over the live heads, both [N,K].

        It asks the device, so it is not for every step; however old the distributions are, the
        estimates stay right.
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
        factor = torch.from_numpy(inverse.astype(np.float32))
        factor = factor.to(self._device, non_blocking=True)
        return HeadSample(chosen, self._branches, factor, self._baseline())

    def _baseline(self) -> Tensor:
        """The mean losses; of a head without any, the mean of its task's others."""
        seen = ~self._mean.isnan()
        sums = self._mean.nansum(dim=1, keepdim=True)
        others = sums / seen.sum(dim=1, keepdim=True).clamp_min(1)
        return torch.where(seen, self._mean, others)

    def watch(self, losses: Tensor, head_sample: HeadSample) -> None:
        """Take the losses [N,K] of a step into the baseline; NaN where there is none."""
        self._mean = running_mean(self._mean, losses, _KEPT, head_sample.factor)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, all [N,K]."""
        return {"mean_losses": self._mean, "inclusion": torch.from_numpy(self._inclusion)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        self._mean = tensors["mean_losses"].to(self._device)
        self._set_inclusion(tensors["inclusion"].cpu().numpy())


def running_mean(mean: Tensor, losses: Tensor, keep: float, gap: Tensor | float = 1.0) -> Tensor:
    """Return the mean after a step; NaN is no loss in this step, and no mean so far.

    Args:
        mean: [N,K].
        losses: Of the step [N,K].
        keep: Weight of the past after one step.
        gap: Steps from one loss of a head to the next, on average: so the past fades with the
            steps, however often a head is seen.
    """
    past = keep**gap
    mixed = past * mean + (1 - past) * losses
    return torch.where(losses.isnan(), mean, torch.where(mean.isnan(), losses, mixed))


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

    The probabilities are laid end to end, and what lies at start, start + 1, ... is chosen.

    Args:
        inclusion: [N,K]; every row sums to an integer, of which it gets that many.
        order: In which the heads of a task are laid, a permutation in every row [N,K].
        starts: [N], from 0 to below 1.
    """
    ends = np.take_along_axis(inclusion, order, axis=1).cumsum(axis=1)
    ends[:, -1] = ends[:, -1].round()
    hit = np.diff(np.ceil(ends - starts[:, None]), axis=1, prepend=0.0) > 0
    chosen = np.zeros(inclusion.shape, dtype=bool)
    np.put_along_axis(chosen, order, hit, axis=1)
    return chosen
