"""The change of a recipe against a reference, paired by seed, with its interval.

Legend: S seeds, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from model.metrics import metric_for
from model.tasks.spec import TaskSpec
from trainer.scoring.summary import Metrics, relative_change

LEVEL = 0.95  # of the intervals


@dataclass(frozen=True)
class PairedChange:
    """The change of a recipe against a reference over the seeds that both have.

    Attributes:
        reference: Label of the reference.
        mean: Over seeds and tasks, in percent, positive is better; None if nothing can be compared,
            NaN if a metric of the recipe is not finite.
        low: Lower end of the interval; None for one seed.
        high: Upper end of the interval; None for one seed.
        seeds: Seeds that both have.
        values: Mean over the tasks, by seed; empty if nothing can be compared.
        by_task: Change of each task by seed.
        left_out: Tasks whose mean reference is not finite and positive, or that lack a metric in a
            run.
    """

    reference: str
    mean: float | None
    low: float | None
    high: float | None
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    by_task: dict[str, tuple[float, ...]]
    left_out: tuple[str, ...]

    @property
    def not_finite(self) -> tuple[int, ...]:
        """The seeds with a change that is not finite."""
        pairs = zip(self.seeds, self.values, strict=False)  # without tasks there are no values
        return tuple(seed for seed, value in pairs if not math.isfinite(value))

    @property
    def sign(self) -> int:
        """1 if the whole interval is above zero, -1 if it is below, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


def paired_change(
    specs: Sequence[TaskSpec],
    runs: Mapping[int, Metrics],
    reference_runs: Mapping[int, Metrics],
    reference: str,
) -> PairedChange:
    """Compare the metrics of a recipe with those of a reference, by seed.

    The change of a task with one seed is the difference of the two runs with this seed, relative to
    the mean of the reference over the seeds. The run's own reference as the denominator would be
    biased: 1 / x is on average above 1 / mean(x), so that a copy of the reference would look worse.

    Args:
        specs: The tasks.
        runs: Metrics of the recipe's runs, by seed.
        reference_runs: Metrics of the runs of the reference, by seed.
        reference: Label of the reference.
    """
    seeds = tuple(sorted(runs.keys() & reference_runs.keys()))
    baseline = mean_metrics(specs, [reference_runs[seed] for seed in seeds])
    pairs = [
        tuple(
            relative_change(specs, each[seed], baseline).by_task for each in (runs, reference_runs)
        )
        for seed in seeds
    ]
    by_task: dict[str, tuple[float, ...]] = {}
    for spec in specs:
        if pairs and all(spec.name in changes for pair in pairs for changes in pair):
            by_task[spec.name] = tuple(own[spec.name] - other[spec.name] for own, other in pairs)
    left_out = tuple(spec.name for spec in specs if spec.name not in by_task)
    if not by_task:
        return PairedChange(reference, None, None, None, seeds, (), {}, left_out)
    changes = np.array(list(by_task.values())).T  # [S,T]
    low, high = interval(changes) or (None, None)
    values = tuple(changes.mean(axis=1).tolist())
    mean = float(changes.mean())
    return PairedChange(reference, mean, low, high, seeds, values, by_task, left_out)


def mean_metrics(specs: Sequence[TaskSpec], runs: Sequence[Metrics]) -> dict[str, dict[str, float]]:
    """Return the mean primary metric over the runs of each task that has one in a run."""
    means: dict[str, dict[str, float]] = {}
    for spec in specs:
        primary = metric_for(spec).primary
        values = [run[spec.name][primary] for run in runs if primary in run.get(spec.name, {})]
        if values:
            means[spec.name] = {primary: sum(values) / len(values)}
    return means


def interval(changes: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the interval of the mean over seeds and tasks; None for one seed.

    Its variance is that of a bootstrap of the seeds plus that of a bootstrap of the tasks, as in
    the pigeonhole bootstrap for crossed factors (Owen 2007), without the bias of resampling few
    values. Both have a closed form: the variance of the means over the number of means. The width
    is that of Student's t distribution with the degrees of freedom of Welch and Satterthwaite.
    Percentiles of resamples would be too narrow: with three seeds no resample is outside of the
    three values.

    Args:
        changes: By seed and task [S,T]; other seeds and other tasks of the same kind are what the
            interval is about.
    """
    if len(changes) < 2:
        return None
    mean = float(changes.mean())
    variances = []  # of the means of the seeds, of the means of the tasks
    for axis in (1, 0):
        means = changes.mean(axis=axis)
        if len(means) > 1:
            variances.append((float(means.var(ddof=1)) / len(means), len(means) - 1))
    variance = sum(part for part, _ in variances)
    if variance == 0:
        return mean, mean
    if not math.isfinite(variance):
        return None
    degrees = 1 / sum((part / variance) ** 2 / freedom for part, freedom in variances)
    half = float(student.ppf((1 + LEVEL) / 2, degrees)) * math.sqrt(variance)
    return mean - half, mean + half
