"""Learners with a warm-up, planted statistics for them, and the steps of their loop."""
# Legend: N tasks, K branches, F features.

import numpy as np
import torch

from dmtg.plugins import RECIPES
from model.grouping.grouping import Grouping
from model.grouping.head_sampling import HeadSample
from trainer.config.loading import parse_config
from trainer.recipes.evidence import EvidenceGroups
from trainer.recipes.learner import LearnerInput

N, K, STEPS = 12, 5, 200
WARM, FINISH = 20, 160
GROUPS = [n % 2 for n in range(N)]


def learner(
    recipe, steps=STEPS, num_tasks=N, num_branches=K, start=0.2, finish=0.8, threshold=0.05, **keys
):
    tree = {
        "run": {"out": "out", "steps": steps},
        "data": {"shards": "s", "image_size": [8, 8], "global_batch": 1},
        "model": {"encoder": {"name": "residual64"}, "branches": num_branches},
        "grouping": {"recipe": recipe, **keys},
        "pruning": {"begin": start, "end": finish, "every": 1, "threshold": threshold},
    }
    config = parse_config(tree, "test")
    grouping = Grouping(num_tasks, num_branches)
    return RECIPES[recipe](grouping, config, steps, torch.device("cpu"), 0)


def statistics(num_tasks=N, num_branches=K, seed=0, alike=True):
    """Of one binary task each, which need two features of their group.

    As each branch has them: tasks that are alike need nearly the same combination of the two.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.zeros(num_branches, num_tasks, 4)
    needed = 1 + 0.2 * torch.randn(num_tasks, 2, generator=torch.Generator().manual_seed(9))
    for group in (0, 2):
        maps = torch.randn(num_branches, 2, 2, generator=generator)
        tasks = [task for task in range(num_tasks) if 2 * (task % 2) == group]
        rows[:, tasks, group : group + 2] = needed[tasks] @ maps
        if not alike:
            rows[:, tasks, group : group + 2] = torch.randn(
                num_branches, len(tasks), 2, generator=generator
            )
    return {
        "count": torch.ones(num_branches),
        "features": torch.zeros(num_branches, 1, 4),
        "residuals": torch.zeros(num_branches, num_tasks, 1),
        "products": rows,
        "second": torch.eye(4).expand(num_branches, 4, 4).clone(),
    }


def inputs(step, gradient, losses):
    """Of a step that computes all heads."""
    shape = tuple(losses.shape)
    sample = HeadSample.all_heads(np.ndindex(shape), shape, torch.device("cpu"))
    return LearnerInput(step, gradient, losses, lr_factor=1.0, head_sample=sample)


def learn(own, given):
    """One step of the loop, without its pruning."""
    own.record_losses(given)
    own.update(given)


def advance(own, first, last, losses=None):
    """The steps of the loop from `first` to `last`, as far as the learner sees them."""
    shape = own.grouping.logits.shape
    for step in range(first, last):
        if own.collects(step):
            given = statistics(*shape, alike=isinstance(own, EvidenceGroups))
            own.collect(given, torch.arange(shape[0]))
        given = torch.ones(shape) if losses is None else losses(step)
        learn(own, inputs(step, torch.full(shape, torch.nan), given))
        own.prune(step + 1)


def started(recipe, **options):
    """A learner at the end of its warm-up, before anything is switched off."""
    own = learner(recipe, **options)
    advance(own, 0, WARM - 1)
    learn(own, inputs(WARM - 1, torch.zeros(N, K), torch.ones(N, K)))
    return own
