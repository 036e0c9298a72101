"""Groups of tasks whose gradients lie in one subspace of the features.

Tasks that need the same features have residuals whose correlations with the features lie in one
low-dimensional subspace. Every task's correlations are written as a combination of those of all
tasks, by least squares with a ridge (Lu et al. 2012, LSR, arXiv 1404.6736): tasks of one subspace
use each other. These coefficients are the affinities, and spectral clustering of their graph of
nearest neighbours gives the groups.

Legend: N tasks, K branches, C chunks of steps, R residuals, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.grouping.affinity import Affinity, spectral_clusters
from model.grouping.gradient_statistics import GradientStatistics

_WHITENING_RIDGE = 0.01  # fraction of the mean variance added to every direction
_RIDGE = 0.3  # of the least squares, relative to a task's squared norm
_NOISE_RIDGE = 3.0  # added to it for every unit of noise per signal
_SHARPNESS = 2  # power of the affinities: separates close from distant neighbours
_SAME_GROUP = 2.05  # of the background, the affinity from which two clusters are one group
_CLEARLY_SAME = 3.5  # of the background, where that saves one branch only
_LIKE_INSIDE = 0.67  # of the affinity inside the looser cluster of the two, in the same case
_FAR_BELOW = 0.45  # of the affinity of the first pair
_FEWEST_HALVED = 4  # tasks of a cluster that is tested for being two groups
_REPLICATES = 20


@dataclass(frozen=True)
class TaskGradients:
    """The tasks' gradients in the whitened features of each branch, by chunks of steps.

    Attributes:
        rows: Sums over the samples of the chunks that have some, float64 [C,K,R,F].
        tasks: The task of every residual, long [R].
        num_tasks: N.
    """

    rows: Tensor
    tasks: Tensor
    num_tasks: int

    @classmethod
    def of(cls, chunks: GradientStatistics, tasks: Tensor, num_tasks: int) -> TaskGradients:
        """Whiten the features of every branch over all chunks.

        Args:
            chunks: Sums over samples from `statistic_sums`, stacked over C and K; those without
                samples, of a short warm-up, are left out.
            tasks: The task of every residual, long [R].
        """
        # Replace non-finite statistics by zero; LossGuard reports divergence.
        sums = {name: value.double().cpu().nan_to_num(0, 0, 0) for name, value in chunks.items()}
        filled = sums["count"].flatten(1).sum(dim=1) > 0
        sums = {name: value[filled] for name, value in sums.items()}
        whole = {name: value.sum(dim=0) for name, value in sums.items()}
        count = whole["count"].clamp_min(1.0).view(-1, 1, 1)
        mean = whole["features"] / count  # [K,P,F]
        total = mean.sum(dim=1)
        second = whole["second"] / count - total[:, :, None] * total[:, None, :]
        values, vectors = torch.linalg.eigh(second)
        ridge = _WHITENING_RIDGE * values.mean(dim=1, keepdim=True)
        scale = (values.clamp_min(0) + ridge).clamp_min(1e-300).rsqrt()
        products = sums["products"] - sums["residuals"] @ mean
        return cls((products @ vectors) * scale[:, None, :], tasks.cpu(), num_tasks)

    def affinity(self, counts: Sequence[int] | None = None) -> Affinity:
        """Return the affinity of every pair of tasks, from 0 to 1.

        Args:
            counts: How often each chunk counts; once by default.

        Returns:
            [N,N], symmetric; zero beside a task that had no label.
        """
        weights = torch.ones(len(self.rows)) if counts is None else torch.tensor(counts)
        rows = torch.einsum("ckrf,c->krf", self.rows, weights.double())
        member = torch.nn.functional.one_hot(self.tasks, self.num_tasks).double()  # [R,N]
        size = torch.einsum("krf,rn->kn", rows.square(), member).sqrt()  # [K,N]
        rows = rows / (size @ member.T).clamp_min(1e-300)[:, :, None]
        inner = (rows @ rows.mT).mean(dim=0)  # [R,R]
        ridge = _RIDGE + _NOISE_RIDGE * self.noise
        coefficients = torch.linalg.solve(inner + ridge * torch.eye(len(inner)).double(), inner)
        energy = member.T @ coefficients.square() @ member
        norm = energy.diagonal().sqrt()
        norm = norm[:, None] * norm[None, :]
        energy = (energy + energy.T) / 2
        ratio = torch.where(norm > 0, energy / norm.clamp_min(1e-300), 0.0)
        return ratio.sqrt().clamp_max(1.0).numpy()

    @cached_property
    def noise(self) -> float:
        """The noise per signal in the squared gradients, the median of the tasks with labels.

        It is estimated from the even and the odd chunks, whose noise is independent; zero for one
        chunk.
        """
        halves = self.rows[0::2].sum(dim=0), self.rows[1::2].sum(dim=0)
        member = torch.nn.functional.one_hot(self.tasks, self.num_tasks).double()

        def inner(one: Tensor, other: Tensor) -> Tensor:
            return torch.einsum("krf,rn->n", one * other, member)

        size = (inner(halves[0], halves[0]) * inner(halves[1], halves[1])).sqrt()
        if not bool((size > 0).any()):
            return 0.0
        alike = (inner(*halves) / size.clamp_min(1e-300))[size > 0].clamp(0.01, 1.0)
        # Of two halves; their sum has half the noise.
        return float(((1 - alike) / (2 * alike)).median())

    def resampled_groups(self, num_groups: int, count: int = _REPLICATES) -> NDArray[np.int_]:
        """Return the groups that other steps of the warm-up might have given.

        Each replicate draws as many chunks as there are, with replacement (the block bootstrap).

        Args:
            num_groups: Of every replicate.
            count: Number of replicates.

        Returns:
            The groups of all tasks [count,N].
        """
        generator = np.random.default_rng(0)
        num_chunks = len(self.rows)
        draws = generator.multinomial(num_chunks, np.full(num_chunks, 1 / num_chunks), size=count)
        affinities = (self.affinity(draw.tolist()) for draw in draws)
        return np.array([group_tasks(each, num_groups, estimate=False) for each in affinities])


def group_tasks(affinity: Affinity, num_branches: int, *, estimate: bool = True) -> list[int]:
    """Return the group of every task, numbered from 0.

    Args:
        affinity: [N,N] from `TaskGradients.affinity`.
        num_branches: K, the most groups.
        estimate: Whether to make fewer groups where some would be parts of one group.
    """
    num_tasks = len(affinity)
    if num_branches >= num_tasks:
        return list(range(num_tasks))
    labels = _cluster(affinity, num_branches)
    return [int(label) for label in (_joined(affinity, labels) if estimate else labels)]


def _joined(affinity: Affinity, labels: NDArray[np.int_]) -> NDArray[np.int_]:
    """Return fewer clusters where some are parts of one group, else the same.

    The two closest clusters are joined as long as the affinity between them is clearly above that
    between most clusters, and not far below that of the first pair. The tasks are clustered anew
    with the number of groups that this gives; no cluster must then fall into halves that are as
    far apart as groups. In doubt the clusters stay as they are: a branch too many costs less than
    a branch too few, so that the evidence for one group less must be stronger than for several.

    Args:
        affinity: [N,N].
        labels: Cluster of every task [N].
    """
    clusters = _members(labels)
    num_clusters = len(clusters)
    if num_clusters < 3:
        return labels
    background = _background(affinity, clusters)
    limit = _SAME_GROUP * background
    closest: list[float] = []
    inside = 0.0  # of the pair that was joined last
    while len(clusters) > 1:
        between = _between(affinity, clusters)
        np.fill_diagonal(between, 0.0)
        first, second = sorted(np.unravel_index(between.argmax(), between.shape))
        if between[first, second] <= max([limit, *(_FAR_BELOW * each for each in closest)]):
            break
        inside = min(_inside(affinity, clusters[first]), _inside(affinity, clusters[second]))
        closest.append(float(between[first, second]))
        clusters[first] = np.concatenate([clusters[first], clusters.pop(second)])
    clearly = max(_CLEARLY_SAME * background, _LIKE_INSIDE * inside)
    unclear = len(closest) == 1 and closest[0] <= clearly
    if not closest or unclear or len(clusters) == 1:
        return labels
    fewer = _cluster(affinity, len(clusters))
    clusters = _members(fewer)
    limit = _SAME_GROUP * _background(affinity, clusters)
    return fewer if all(_is_whole(affinity, each, limit) for each in clusters) else labels


def _is_whole(affinity: Affinity, members: NDArray[np.int_], limit: float) -> bool:
    """Return whether the halves of a cluster have an affinity of at least the limit."""
    if len(members) < _FEWEST_HALVED:
        return True
    inner = affinity[np.ix_(members, members)]
    return _between(inner, _members(_cluster(inner, 2)))[0, 1] >= limit


def _members(labels: NDArray[np.int_]) -> list[NDArray[np.int_]]:
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _background(affinity: Affinity, clusters: Sequence[NDArray[np.int_]]) -> float:
    """Return the lower quartile of the affinities between two clusters."""
    apart = np.triu_indices(len(clusters), 1)
    return float(np.quantile(_between(affinity, clusters)[apart], 0.25))


def _between(affinity: Affinity, clusters: Sequence[NDArray[np.int_]]) -> Affinity:
    """Return the root of the mean squared affinity between the tasks of two clusters."""
    squares = affinity**2
    rows = [[squares[np.ix_(one, other)].mean() for other in clusters] for one in clusters]
    return np.sqrt(np.array(rows))


def _inside(affinity: Affinity, members: NDArray[np.int_]) -> float:
    """Return the root of the mean squared affinity between the tasks of a cluster; 0 for one."""
    pairs = affinity[np.ix_(members, members)][np.triu_indices(len(members), 1)]
    return float(np.sqrt((pairs**2).mean())) if len(pairs) else 0.0


def _cluster(affinity: Affinity, num_groups: int) -> NDArray[np.int_]:
    neighbours = max(3, round(1.35 * math.log(len(affinity))))
    return spectral_clusters(affinity**_SHARPNESS, num_groups, neighbours)
