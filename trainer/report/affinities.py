"""The affinities and co-assignments of a run's tasks, in an order that shows blocks.

Legend: N tasks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from trainer.report.records import Record

_COEFFICIENTS = (
    "How much each task's gradient in the warm-up is a combination of the other's: the size of its "
    "coefficients among those of all tasks (ridge least squares in whitened features), from 0 to "
    "1. The groups started from it."
)
_RV = (
    "RV coefficient of the gradients of two tasks in the warm-up, from 0 to 1: how similar the "
    "features are that they need. The groups started from it."
)
_MAX_OPTIMAL = 300  # tasks for which the order of the leaves is optimised; the time is cubic


@dataclass(frozen=True)
class Affinities:
    """The affinities of the tasks.

    Attributes:
        values: [N,N], symmetric; the diagonal counts as one.
        meaning: What a value is, as a sentence.
    """

    values: NDArray[np.float64]
    meaning: str


_OF_STEPS = (
    "Mean effect of two tasks on each other in the search, in both directions: above 0 a step for "
    "one lowers the loss of the other."
)
_OF_PAIRS = (
    "Mean gain of two tasks that were trained as a pair in the search: 0.1 is a loss on held-out "
    "samples that is a tenth below that of the task on its own."
)


def read_affinities(run: Path, grouping_records: list[Record], names: list[str]) -> Affinities:
    """Return the affinities of the tasks.

    Raises:
        ValueError: There are none; the message says why.
    """
    recorded = [r["affinity"] for r in grouping_records if r["kind"] == "affinity"]
    if recorded:
        values = _from_rows(recorded[-1])
        if len(values) == len(names):
            # Recipes whose affinities are RV coefficients resample nothing.
            together = read_co_assignment(grouping_records, len(names))
            return Affinities(values, _RV if together is None else _COEFFICIENTS)
    path = run / "search" / "groups.json"
    try:
        tree = json.loads(path.read_text())
        values = np.array(tree["affinity"], dtype=float)
        if tree["tasks"] != names or values.shape != (len(names), len(names)):
            raise ValueError(f"{path} is not of these tasks")
    except OSError:
        raise ValueError(
            "This run has recorded no affinities: its recipe computes none, its warm-up has not "
            "ended, or an earlier version of dmtg trained it."
        ) from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no affinities ({error!r})") from None
    values = np.nan_to_num((values + values.T) / 2)
    return Affinities(values, _OF_PAIRS if "losses" in tree else _OF_STEPS)


def read_co_assignment(
    grouping_records: list[Record], num_tasks: int
) -> NDArray[np.float64] | None:
    """Return how often two tasks share a group over resampled steps [N,N], from 0 to 1.

    None if the run has not recorded it.
    """
    recorded = [r["co_assignment"] for r in grouping_records if r["kind"] == "co_assignment"]
    values = _from_rows(recorded[-1]) if recorded else None
    return values if values is not None and len(values) == num_tasks else None


def block_order(affinity: NDArray[np.float64], labels: list[int]) -> list[int]:
    """Return the tasks group by group, and within a group by average linkage of the affinities.

    Args:
        affinity: [N,N], symmetric.
        labels: Group of each task.
    """
    order: list[int] = []
    for label in sorted(set(labels)):
        members = [task for task, own in enumerate(labels) if own == label]
        order += [members[leaf] for leaf in _leaves(affinity[np.ix_(members, members)])]
    return order


def _leaves(affinity: NDArray[np.float64]) -> list[int]:
    if len(affinity) < 3:
        return list(range(len(affinity)))
    distance = affinity.max() - affinity
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(distance, checks=False)
    tree = linkage(condensed, "average")
    if len(affinity) <= _MAX_OPTIMAL:
        tree = optimal_leaf_ordering(tree, condensed)
    leaves: list[int] = leaves_list(tree).tolist()
    return leaves


def _from_rows(rows: list[list[float | None]]) -> NDArray[np.float64]:
    """Return the symmetric matrix of rows that end at the diagonal."""
    values = np.zeros((len(rows), len(rows)))
    for n, row in enumerate(rows):
        values[n, : n + 1] = np.nan_to_num(np.array(row, dtype=float))
        values[: n + 1, n] = values[n, : n + 1]
    return values
