"""Affinities of tasks from the gradient statistics of a warm-up, and their clusters.

Tasks that need the same features have residuals whose correlations with the features lie in one
low-dimensional subspace. The affinity of two tasks is the RV coefficient of these correlations
(|cosine| for tasks with one output), and tasks are grouped as in thresholded subspace clustering
(Heckel and Boelcskei, arXiv 1307.4891): a graph of nearest neighbours, its spectrum, k-means.

Legend: N tasks, K branches, R residuals, F features.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.grouping.gradient_statistics import GradientStatistics

_RIDGE = 0.01  # fraction of the mean variance added to every direction before whitening
_SHARPNESS = 4  # power of the affinities: separates close from distant neighbours
_CLEAR_GAP = 0.1
_COHESION = 2.0

Affinity = NDArray[np.float64]


def task_affinity(statistics: GradientStatistics, tasks: Tensor, num_tasks: int) -> Affinity:
    """Return the affinity of every pair of tasks, from 0 to 1, mean over the branches.

    Args:
        statistics: Sums over samples from `statistic_sums`, stacked over K.
        tasks: The task of every residual, long [R].

    Returns:
        [N,N], symmetric; zero beside a task that had no label.
    """
    # Replace non-finite statistics by zero; LossGuard reports divergence.
    sums = {name: value.double().cpu().nan_to_num(0, 0, 0) for name, value in statistics.items()}
    count = sums["count"].view(-1, 1, 1)
    mean = sums["features"] / count  # [K,P,F]
    products = sums["products"] - sums["residuals"] @ mean
    whole = mean.sum(dim=1)
    second = sums["second"] / count - whole[:, :, None] * whole[:, None, :]
    values, vectors = torch.linalg.eigh(second)
    ridge = _RIDGE * values.mean(dim=1, keepdim=True)
    scale = (values.clamp_min(0) + ridge).clamp_min(1e-300).rsqrt()
    white = (products @ vectors) * scale[:, None, :]  # [K,R,F]
    member = torch.nn.functional.one_hot(tasks.cpu(), num_tasks).double()  # [R,N]
    inner = member.T @ (white @ white.mT).square() @ member  # [K,N,N]
    norm = inner.diagonal(dim1=1, dim2=2).sqrt()
    norm = norm[:, :, None] * norm[:, None, :]
    rv = torch.where(norm > 0, inner / norm.clamp_min(1e-300), 0.0).sqrt()
    return rv.mean(dim=0).numpy()


def group_tasks(affinity: Affinity, num_branches: int, *, estimate: bool = True) -> list[int]:
    """Return the group of every task, numbered from 0.

    Args:
        affinity: [N,N] from `task_affinity`.
        num_branches: K, the most groups.
        estimate: Whether to make fewer groups where the spectrum says so, and the tasks of each
            are at least twice as close to each other as those of different groups. In doubt K
            groups are made: a branch too many costs less than a branch too few.
    """
    num_tasks = len(affinity)
    if num_branches >= num_tasks:
        return list(range(num_tasks))
    neighbours = max(3, round(1.35 * math.log(num_tasks)))
    num_groups = num_branches
    if estimate:
        guesses = [
            number_of_groups(_graph(affinity, count), num_branches)
            for count in (neighbours - 1, neighbours, neighbours + 1)
        ]
        num_groups = sorted(guesses)[1]
    sharp = affinity**_SHARPNESS
    labels = spectral_clusters(sharp, num_groups, neighbours)
    if num_groups < num_branches and not _cohesive(affinity, labels):
        labels = spectral_clusters(sharp, num_branches, neighbours)
    return [int(label) for label in labels]


def _cohesive(affinity: Affinity, labels: NDArray[np.int_]) -> bool:
    """Return whether the tasks of every group are clearly closer to each other than to others."""
    same = labels[:, None] == labels[None, :]
    apart = affinity[~same].mean()
    others = ~np.eye(len(labels), dtype=bool)
    members = [np.outer(labels == group, labels == group) & others for group in np.unique(labels)]
    return all(affinity[pairs].mean() >= _COHESION * apart for pairs in members if pairs.any())


def spectral_clusters(affinity: Affinity, num_groups: int, neighbours: int) -> NDArray[np.int_]:
    """Return the cluster of every task in the graph of its nearest neighbours [N]."""
    if num_groups == 1:
        return np.zeros(len(affinity), dtype=int)
    from sklearn.cluster import SpectralClustering

    clustering = SpectralClustering(num_groups, affinity="precomputed", random_state=0)
    with warnings.catch_warnings():  # a graph that is not connected is allowed
        warnings.simplefilter("ignore", UserWarning)
        return clustering.fit_predict(_graph(affinity, neighbours) + 1e-9)


def number_of_groups(graph: Affinity, most: int) -> int:
    """Return the number of groups at the widest gap of the graph's spectrum.

    Where the gap is not clear, or follows the first eigenvalue (no groups at all), it is `most`.
    """
    degree = graph.sum(axis=1)
    scale = 1 / np.sqrt(np.where(degree > 0, degree, 1.0))
    spectrum = np.linalg.eigvalsh(graph * scale[:, None] * scale[None, :])[::-1]
    gaps = spectrum[:most] - spectrum[1 : most + 1]
    widest = int(gaps.argmax()) + 1
    return widest if widest > 1 and gaps[widest - 1] >= _CLEAR_GAP else most


def _graph(affinity: Affinity, neighbours: int) -> Affinity:
    """Return the affinities of pairs of which one is among the other's nearest, else zero."""
    others = np.where(np.eye(len(affinity), dtype=bool), -np.inf, affinity)
    neighbours = min(neighbours, len(affinity) - 1)
    nearest = np.zeros_like(affinity, dtype=bool)
    rows = np.arange(len(affinity))[:, None]
    nearest[rows, np.argsort(-others, axis=1, kind="stable")[:, :neighbours]] = True
    return np.where(nearest | nearest.T, affinity, 0.0)
