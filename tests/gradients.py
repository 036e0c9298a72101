"""Gradient statistics of a few tasks, random or with planted groups."""
# Legend: N tasks, S samples, F features, O outputs.

import numpy as np
import torch

from model.grouping.gradient_statistics import stack_statistics, statistic_sums


def samples(num_tasks=5, num_samples=200, num_features=6, outputs=1, seed=0):
    """Features [S,F] that are neither centred nor white, residuals [N*O,S], and their tasks."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_samples, num_features)) @ rng.normal(size=(num_features,) * 2)
    features += rng.normal(size=num_features)
    mixing = rng.normal(size=(num_tasks * outputs, num_features))
    residuals = mixing @ features.T + 3 * rng.normal(size=(num_tasks * outputs, num_samples))
    return features, residuals, np.repeat(np.arange(num_tasks), outputs)


def statistics_of(*pairs):
    """What the branches with these features and residuals add up to, in float64."""
    branches = [
        statistic_sums(torch.tensor(f)[:, None].float(), torch.tensor(r)[..., None].float())
        for f, r in pairs
    ]
    return stack_statistics(branches)


def planted_statistics(num_tasks, num_groups, dimensions=4, num_features=32, seed=0, outputs=1):
    """Statistics of tasks whose covariances lie in a random subspace of their group; the truth."""
    rng = np.random.default_rng(seed)
    bases = rng.normal(size=(num_groups, dimensions, num_features))
    truth = rng.integers(num_groups, size=num_tasks)
    weights = rng.normal(size=(num_tasks, outputs, dimensions))
    rows = np.einsum("nod,ndf->nof", weights, bases[truth]).reshape(-1, num_features)
    statistics = {
        "count": torch.ones(1),
        "features": torch.zeros(1, 1, num_features),
        "residuals": torch.zeros(1, len(rows), 1),
        "products": torch.tensor(rows)[None],
        "second": torch.eye(num_features)[None],
    }
    tasks = torch.arange(num_tasks).repeat_interleave(outputs)
    return statistics, tasks, truth.tolist()
