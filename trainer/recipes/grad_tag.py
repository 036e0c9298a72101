"""The recipe `grad_tag`: clusters of the tasks by the direction of their projected gradients.

In the manner of Grad-TAG (Li, Sharma and Zhang 2024, arXiv 2409.06091): the gradients that the
tasks have in one trained network of all tasks are projected to a few hundred numbers, and a
linear model of the losses says how the tasks act on each other.

Legend: N tasks, S size of a projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipelines.reading.collate import Batch
from dmtg.plugins import register_recipe
from model.transfer import copy_to_device
from trainer.config.grouping import GroupingSection
from trainer.config.section import PositiveInt
from trainer.recipes.groups import Groups, groups_of_labels
from trainer.recipes.mean_affinity import add_affinity
from trainer.recipes.observed_run import ObservedRun
from trainer.recipes.searched import ObservedGroups, SearchSection
from trainer.recipes.task_losses import TaskLosses

_TRAINED = 0.5  # fraction of the run after which the network counts as trained
_LOWEST_AFFINITY = 1e-3  # of tasks with negative cosines: the graph must stay connected


class GradTagSection(SearchSection):
    """The keys of the recipe `grad_tag`."""

    projection: PositiveInt = 512
    """Size of a projected gradient."""


@register_recipe("grad_tag")
class GradTagGroups(ObservedGroups):
    """Spectral clusters of the tasks by the direction of their projected gradients."""

    section: ClassVar[type[GroupingSection]] = GradTagSection

    @staticmethod
    def observe(section: SearchSection, run: ObservedRun, micro_batches: list[Batch]) -> None:
        """Add the similarities of this step to the run's mean, every `search_every` steps.

        The batch is the first micro-batch of the step.
        """
        assert isinstance(section, GradTagSection), "the recipe has this section"
        if run.step % section.search_every or run.step < _TRAINED * run.num_steps:
            return
        add_affinity(run, *gradient_similarity(run, micro_batches[0], section.projection))

    @staticmethod
    def partition(affinity: np.ndarray, max_groups: int) -> Groups:
        """Return the clusters of the tasks, see `cluster`."""
        return cluster(affinity, max_groups)


def gradient_similarity(run: ObservedRun, batch: Batch, size: int) -> tuple[Tensor, Tensor]:
    """Return the cosines between the tasks' projected gradients in the shared parameters.

    To first order a step along task i's gradient lowers task j's loss in proportion to the product
    of both gradients; the cosine leaves their lengths, the tasks' scales, out.

    Returns:
        Cosines [N,N], and which pairs are known: those with labels of both tasks in the batch.
    """
    task_losses = TaskLosses(run, batch)
    losses = task_losses.local(task_losses.shared)
    sketches = _sketches.setdefault(run.engine.module, {})
    if size not in sketches:
        lengths = [p.numel() for p in task_losses.shared]
        sketches[size] = Sketch(lengths, size, run.config.run.seed, losses.device)
    sketch = sketches[size]
    rows = [sketch(task_losses.gradient(losses, task)) for task in range(len(losses))]
    projected = F.normalize(run.engine.sum_over_ranks(torch.stack(rows)), dim=1)  # [N,S]
    labelled = task_losses.labelled
    return projected @ projected.T, labelled[:, None] & labelled[None, :]


# By size, of every network that is observed, as long as it exists.
_sketches: WeakKeyDictionary[nn.Module, dict[int, Sketch]] = WeakKeyDictionary()


class Sketch:
    """A count sketch: every coordinate is added, with a random sign, to one of S numbers.

    Inner products are kept in the mean, with a relative deviation of about 1/sqrt(S); no matrix of
    coordinates by S is made.

    Args:
        lengths: Number of coordinates of every part of a vector.
        size: S.
        seed: Of places and signs.
        device: Where the vectors lie.
    """

    def __init__(
        self, lengths: Sequence[int], size: int, seed: int, device: torch.device | str
    ) -> None:
        self._size = size
        generator = torch.Generator().manual_seed(seed)
        # Place and sign in one number: from S on, places stand for a negative sign.
        self._places = [
            copy_to_device(places, torch.device(device))
            for places in (
                torch.randint(2 * size, (n,), generator=generator, dtype=torch.int32)
                for n in lengths
            )
        ]

    def __call__(self, parts: Sequence[Tensor]) -> Tensor:
        """Project a vector, given in parts of any shapes, to [S]."""
        sums = torch.zeros(2 * self._size, device=self._places[0].device)
        for places, part in zip(self._places, parts, strict=True):
            sums.index_add_(0, places, part.flatten().float())
        return sums[: self._size] - sums[self._size :]


def cluster(affinity: np.ndarray, num_groups: int) -> Groups:
    """Return spectral clusters of the tasks; negative cosines count as no affinity.

    Args:
        affinity: Cosines [N,N].
        num_groups: The most groups.
    """
    from sklearn.cluster import SpectralClustering

    num_tasks = len(affinity)
    if num_groups >= num_tasks:
        return groups_of_labels(range(num_tasks))
    if num_groups == 1:
        return groups_of_labels([0] * num_tasks)
    graph = np.clip((affinity + affinity.T) / 2, _LOWEST_AFFINITY, None)
    np.fill_diagonal(graph, 1.0)
    # The assignment by QR is not random, but the eigensolver starts with a random vector.
    spectral = SpectralClustering(
        num_groups, affinity="precomputed", assign_labels="cluster_qr", random_state=0
    )
    return groups_of_labels(spectral.fit_predict(graph).tolist())
