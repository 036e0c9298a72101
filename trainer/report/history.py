"""How the groups were found: live heads, and the probabilities of the branches over time.

Branches have the numbers that they had before the first step; `metrics.jsonl` numbers those that
are left anew whenever the network is made smaller.

Legend: T records, N tasks, K branches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.report.records import Record


@dataclass(frozen=True)
class History:
    """The probabilities of the branches over time.

    Attributes:
        steps: [T], ascending.
        probabilities: [T,N,K], rows of which add up to about one.
        recorded: Whether the run recorded them; else all live heads of a task count the same.
    """

    steps: list[int]
    probabilities: NDArray[np.float64]
    recorded: bool


def given_heads(records: list[Record]) -> list[tuple[int, int]] | None:
    """Return the heads (task, branch) of a run whose groups were given, None for other runs."""
    given = next((record["heads"] for record in records if record["kind"] == "given"), None)
    return None if given is None else [(task, branch) for task, branch in given]


def switched_off_steps(
    records: list[Record], num_tasks: int, num_branches: int
) -> NDArray[np.float64]:
    """Return the step at which each head [N,K] was switched off; infinity for live heads.

    Args:
        records: Of `metrics.jsonl`.
        num_tasks: N.
        num_branches: K before the first step. Given groups have as many branches as they need.
    """
    given = given_heads(records)
    if given is not None:
        switched_off = np.zeros((num_tasks, 1 + max(branch for _, branch in given)))
        switched_off[tuple(zip(*given, strict=True))] = np.inf
        return switched_off
    switched_off = np.full((num_tasks, num_branches), np.inf)
    columns = list(range(num_branches))
    for record in records:
        if record["kind"] == "prune":
            for task, branch in record["off"]:
                switched_off[task, columns[branch]] = record["step"]
        if record["kind"] == "compact":
            columns = [columns[branch] for branch in record["branches"]]
    return switched_off


def branches_after(records: list[Record], step: int, num_branches: int) -> list[int]:
    """Return the initial numbers of the branches of the network that computes the next step.

    A record of `grouping.jsonl` is written before the network is made smaller in its step.
    """
    columns = list(range(num_branches))
    for record in records:
        if record["kind"] == "compact" and record["step"] < step:
            columns = [columns[branch] for branch in record["branches"]]
    return columns


def read_history(
    records: list[Record],
    grouping_records: list[Record],
    switched_off: NDArray[np.float64],
    max_records: int,
) -> History:
    """Return the probabilities over time, ending with the last step of `metrics.jsonl`.

    Args:
        records: Of `metrics.jsonl`.
        grouping_records: Of `grouping.jsonl`; empty for a run of an earlier version.
        switched_off: From `switched_off_steps`.
        max_records: Most records to return; they are thinned evenly.
    """
    last = max((record["step"] for record in records), default=0)
    pruned = np.unique(switched_off[np.isfinite(switched_off)]).astype(int).tolist()
    recorded = {r["step"]: r for r in grouping_records if r["kind"] == "probabilities"}
    final = max(recorded, default=0)  # nothing is recorded once each task has one head
    ends = {step for step in (max(pruned, default=0), last) if step > final} | {last}
    steps = sorted({*recorded, *ends}) if recorded else sorted({0, *pruned, last})

    def row(step: int) -> NDArray[np.float64]:
        if step in recorded and step not in ends:
            return _row(recorded[step], records, switched_off.shape[1])
        known = _row(recorded[final], records, switched_off.shape[1]) if recorded else None
        return _pruned(known, switched_off > step)

    kept = [steps[i] for i in thinned(len(steps), max_records)]
    return History(kept, np.stack([row(step) for step in kept]), bool(recorded))


def thinned(length: int, most: int) -> list[int]:
    """Return at most `most` positions, evenly over `range(length)`, with the first and the last."""
    return sorted(set(np.linspace(0, length - 1, min(length, most)).round().astype(int).tolist()))


def _row(record: Record, records: list[Record], num_branches: int) -> NDArray[np.float64]:
    """Return the probabilities [N,K] of a record of `grouping.jsonl`."""
    values = np.array(record["probabilities"], dtype=float)
    columns = branches_after(records, record["step"], num_branches)
    row = np.zeros((len(values), num_branches))
    row[:, columns] = np.nan_to_num(values)
    return row


def _pruned(probabilities: NDArray[np.float64] | None, alive: NDArray[np.bool_]) -> NDArray:
    """Return the probabilities [N,K] over live heads only; equal ones if there are none."""
    values = alive.astype(float)
    if probabilities is not None:
        weighted = probabilities * alive
        values = np.where(weighted.sum(axis=1, keepdims=True) > 0, weighted, values)
    total: NDArray[np.float64] = values / values.sum(axis=1, keepdims=True).clip(1e-12)
    return total
