"""Compare several runs: the agreement of their groupings, and paired differences per task.

Runs that differ in nothing but the seed belong to one setting. Runs of two settings are paired by
seed, because the seed decides the sample order and the initial parameters.

Legend: R runs, N tasks that all runs have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student
from sklearn.metrics import adjusted_rand_score

from dmtg.names import shortened
from model.metrics import metric_for
from model.tasks.spec import TaskSpec
from trainer.report.run_facts import RunFacts, rounded
from trainer.scoring.summary import relative_change

_LEVEL = 0.95  # of the intervals
# Keys and sections that do not tell two settings apart.
_IGNORED = (
    "run.seed",
    "run.out",
    "run.resume",
    "run.max_minutes",
    "run.timeout_seconds",
    "run.stall_seconds",
    "run.checkpoint_every",
    "run.keep_last",
    "run.keep_every",
    "run.async_checkpoint",
    "run.profile",
    "run.profile_ranks",
    "data.cache_dir",
    "data.cache_gb",
    "data.retry_seconds",
    "data.workers",
    "eval.",
    "log.",
)


def compare_runs(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """Return the comparison of two or more runs, as JSON values.

    Returns:
        `agreement`: the adjusted Rand index of every pair of runs [R,R], null without two common
        tasks. `settings`: for each its `name` and the numbers of its `runs`. `pairs`: for every
        setting but the first, which is the reference, the `seeds` that both have, by task the
        paired difference of the primary metric, and the mean relative change over the tasks.
        `left_out`: tasks that some run lacks.
    """
    names = [task.name for task in runs[0].tasks]
    common = [n for n in names if all(n in {t.name for t in run.tasks} for run in runs)]
    everything = {task.name for run in runs for task in run.tasks}
    settings = _settings(runs)
    (first, reference), *others = settings.items()
    specs = [task for task in runs[0].tasks if task.name in common]
    return {
        "agreement": [[_agreement(a, b, common) for b in runs] for a in runs],
        "settings": [
            {"name": name, "runs": [runs.index(run) for run in members]}
            for name, members in settings.items()
        ],
        "reference": first,
        "level": _LEVEL,
        "pairs": [{"name": name, **_paired(reference, members, specs)} for name, members in others],
        "left_out": sorted(everything - set(common)),
    }


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of values and the half width of its interval by Student's t distribution.

    The half width is None for a single value.
    """
    if len(values) < 2:
        return fmean(values), None
    factor = float(student.ppf((1 + _LEVEL) / 2, len(values) - 1))
    return fmean(values), factor * stdev(values) / math.sqrt(len(values))


def _settings(runs: Sequence[RunFacts]) -> dict[str, list[RunFacts]]:
    """Return the runs by the name of their setting, in the order of their first runs."""
    flat = [dict(_flattened(run.config.without_secrets())) for run in runs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    different = [k for k in keys if any(_value(v, k) != _value(flat[0], k) for v in flat)]
    chosen = [tuple(_value(values, key) for key in different) for values in flat]
    recipes = [run.config.grouping.recipe for run in runs]
    by_recipe = len(set(recipes)) == len(set(chosen)) == len(set(zip(recipes, chosen, strict=True)))
    settings: dict[str, list[RunFacts]] = {}
    for run, recipe, values in zip(runs, recipes, chosen, strict=True):
        pairs = zip(different, values, strict=True)
        listed = ", ".join(f"{key}={value}" for key, value in pairs if value is not None)
        name = recipe if by_recipe else shortened(listed, 120)
        settings.setdefault(name, []).append(run)
    names = [run.name for run in runs]
    if not by_recipe and len(settings) == len(set(names)) == len(runs):
        return {run.name: [run] for run in runs}
    return settings


def _flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of a configuration, with their sections, that tell two settings apart."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{key}.")
        elif not key.startswith(_IGNORED):
            yield key, value


def _value(values: Mapping[str, Any], key: str) -> str | None:
    return str(values[key]) if key in values else None


def _agreement(a: RunFacts, b: RunFacts, common: Sequence[str]) -> float | None:
    if len(common) < 2:
        return None
    labels = []
    for run in (a, b):
        group_of = {task.name: group for task, group in zip(run.tasks, run.groups, strict=True)}
        labels.append([group_of[name] for name in common])
    return rounded(float(adjusted_rand_score(*labels)))


def _paired(
    reference: Sequence[RunFacts], members: Sequence[RunFacts], specs: Sequence[TaskSpec]
) -> dict[str, Any]:
    """Return the differences of two settings, run minus reference, over the seeds of both."""
    own, other = _by_seed(members), _by_seed(reference)
    seeds = sorted(set(own) & set(other))
    tasks = {}
    for spec in specs:
        values = [_difference(spec, own[seed], other[seed]) for seed in seeds]
        known = [value for value in values if value is not None]
        if known:
            mean, half = interval(known)
            tasks[spec.name] = {"mean": rounded(mean), "half": rounded(half), "seeds": len(known)}
    changes = [relative_change(specs, own[s].metrics, other[s].metrics) for s in seeds]
    means = [c.mean for c in changes if c.mean is not None and math.isfinite(c.mean)]
    change: tuple[float | None, float | None] = interval(means) if means else (None, None)
    return {
        "seeds": seeds,
        "tasks": tasks,
        "change": rounded(change[0]),
        "change_half": rounded(change[1]),
        "change_tasks": min((len(each.by_task) for each in changes), default=0),
    }


def _by_seed(runs: Sequence[RunFacts]) -> dict[int, RunFacts]:
    """Return the runs by seed, of several with one seed the first."""
    return {run.config.run.seed: run for run in reversed(runs)}


def _difference(spec: TaskSpec, run: RunFacts, reference: RunFacts) -> float | None:
    primary = metric_for(spec).primary
    values = [r.metrics.get(spec.name, {}).get(primary, math.nan) for r in (run, reference)]
    return values[0] - values[1] if all(map(math.isfinite, values)) else None
