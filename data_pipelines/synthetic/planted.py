"""The planted problem: tasks with known true groups, each a function of its group's features.

Inputs are standard normal vectors. Each group has a random map of two layers with tanh between
them to a few features, and each task is the sign of a random linear function of its group's
features. A branch that can represent the features of one group is too small for two groups.

Legend: N tasks, G groups, B samples, D inputs, H hidden units, M features of a group.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from data_pipelines.reading.collate import Batch

NUM_INPUTS, NUM_HIDDEN, NUM_FEATURES = 32, 64, 4
_WIDTH = 1.5  # scale of the first layer, large enough for clearly non-linear maps


class PlantedProblem:
    """N binary tasks in G groups, with any number of samples.

    Attributes:
        groups: The true group of every task, long [N].
    """

    def __init__(self, num_tasks: int, num_groups: int, seed: int) -> None:
        self.tasks = tuple(f"task{number:04d}" for number in range(num_tasks))
        self._seed = seed
        generator = _generator(seed, 0)
        first = torch.randn(num_groups, NUM_INPUTS, NUM_HIDDEN, generator=generator)
        second = torch.randn(num_groups, NUM_HIDDEN, NUM_FEATURES, generator=generator)
        self._first = first * _WIDTH / math.sqrt(NUM_INPUTS)
        self._second = second / math.sqrt(NUM_HIDDEN)
        self.groups = torch.randint(num_groups, (num_tasks,), generator=generator)
        self._readouts = torch.randn(num_tasks, NUM_FEATURES, generator=generator)

    def batch(self, number: int, batch_size: int) -> Batch:
        """Return batch `number` of the problem, which depends only on the seed and the number."""
        generator = _generator(self._seed, number + 1)
        inputs = torch.randn(batch_size, NUM_INPUTS, generator=generator)
        return Batch(
            tasks=self.tasks,
            scalar_tasks=self.tasks,
            images=inputs[:, :, None, None],
            scalars=self._labels(inputs),
            dense={},
            valid_rows=torch.ones(len(self.tasks), batch_size, dtype=torch.bool),
            keys=tuple(f"{number}-{row}" for row in range(batch_size)),
        )

    def _labels(self, inputs: Tensor) -> Tensor:
        labels = torch.empty(len(self.tasks), len(inputs))
        for group in range(len(self._first)):
            members = (self.groups == group).nonzero()[:, 0]
            features = torch.tanh(inputs @ self._first[group]) @ self._second[group]  # [B,M]
            labels[members] = (self._readouts[members] @ features.T > 0).float()
        return labels


def _generator(seed: int, stream: int) -> torch.Generator:
    state = np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
