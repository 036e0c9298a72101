"""The results of a comparison in plain words: a sentence for each row, and a closing verdict."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.compare.paired import LEVEL, PairedChange
from trainer.compare.table import ONE_BRANCH, RecipeResult

SMALL = 1.0  # percent; a gain that is surely smaller does not pay for more branches
_SINGLE_TASK = "single_task"


def sentences(results: Sequence[RecipeResult]) -> list[str]:
    """Return a sentence for each row with a reference: what was found, and the cost."""
    lines = []
    for result in results:
        if result.gain is not None and not result.is_reference:
            cost = _cost(result)
            lines.append(f"{sentence(result.recipe, result.gain)}{cost and f'; {cost}'}.")
    return lines


def sentence(label: str, change: PairedChange) -> str:
    """Return what a comparison has found, without a full stop.

    Args:
        label: Of the row.
        change: Of the row against its reference.
    """
    return f"{label} against {change.reference}: {_finding(change)}"


def closing(results: Sequence[RecipeResult]) -> str:
    """Return the verdict on all rows; empty if no rows could be compared."""
    changes = [r.gain for r in results if r.gain is not None and not r.is_reference]
    if not any(change.seeds for change in changes):
        return ""
    if all(len(change.seeds) < 2 for change in changes):
        return (
            "No verdict: with one seed a difference cannot be told from chance. Compare with more "
            "seeds, such as --seeds 5."
        )
    parts = (_against_reference(results), _against_one_branch(results), _enough_branches(results))
    return " ".join(part for part in parts if part)


def percent(value: float) -> str:
    """Return a number of percent with one decimal, or with one digit if it is very small."""
    text = f"{value:.1f}"
    return f"{value:.1g}" if value and not float(text) else text


def signed(value: float) -> str:
    """Return `percent` with a plus sign if it is positive."""
    return f"+{percent(value)}" if value > 0 else percent(value + 0.0)  # no minus before a zero


def _finding(change: PairedChange) -> str:
    if not change.seeds:
        return "no comparison, no seed has a finished run of both"
    if change.mean is None:
        return (
            f"no comparison, no task of {len(change.left_out)} has a reference above 0 and a "
            "metric in every run"
        )
    if change.not_finite:
        return f"no comparison, a metric is not finite with {_seed_list(change.not_finite)}"
    tasks = _count(len(change.by_task), "task")
    if change.left_out:
        tasks += f", {len(change.left_out)} left out"
    size = f"{percent(abs(change.mean))} % {'worse' if change.mean < 0 else 'better'}"
    if change.low is None or change.high is None:
        return f"{size} with {_seed_list(change.seeds)} ({tasks}; one seed gives no interval)"
    if change.sign:
        return f"{size} ({_interval(change)}, {_count(len(change.seeds), 'seed')}, {tasks})"
    return f"{_no_difference(change)} ({_interval(change)}, {tasks})"


def _no_difference(change: PairedChange) -> str:
    return f"no difference that {_count(len(change.seeds), 'seed')} can show"


def _interval(change: PairedChange) -> str:
    """Return the interval as text: as sizes if all of it has one sign."""
    assert change.low is not None and change.high is not None, "there are several seeds"
    ends = [signed(change.low), signed(change.high)]
    if change.sign:
        ends = [percent(end) for end in sorted((abs(change.low), abs(change.high)))]
    return f"{100 * LEVEL:.0f} % interval {ends[0]} to {ends[1]}"


def _cost(result: RecipeResult) -> str:
    ratios = {"parameters": result.times_parameters, "seconds": result.times_seconds}
    known = [f"{times(ratio)} times the {name}" for name, ratio in ratios.items() if ratio]
    return " and ".join(known)


def times(ratio: float) -> str:
    """Return a ratio with about two digits."""
    return f"{ratio:.2f}" if ratio < 0.995 else f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"


def _against_reference(results: Sequence[RecipeResult]) -> str:
    """Return the verdict on the groups; that on one branch as the reference is another part."""
    names = {result.recipe: result.name for result in results}
    rows = [
        (result.recipe, result.gain)
        for result in results
        if not result.is_reference and result.name not in (ONE_BRANCH, _SINGLE_TASK)
        and result.gain is not None and result.gain.high is not None
        and names[result.gain.reference] != ONE_BRANCH
    ]  # fmt: skip
    if not rows:
        return ""
    references = list(dict.fromkeys(change.reference for _, change in rows))
    at_random = {names[reference] for reference in references} == {"random"}
    reference = "random groups" if at_random else " and ".join(references)
    better = _listed([row for row in rows if row[1].sign > 0])
    if better:
        return f"{better} better than {reference}{': the groups matter' if at_random else ''}."
    if all(change.sign < 0 for _, change in rows):
        return f"{_listed(rows)} worse than {reference}."
    conclusion = "any groups do" if at_random else f"take {reference} or the cheapest recipe"
    return _none_better("recipe", reference, [change for _, change in rows], conclusion)


def _against_one_branch(results: Sequence[RecipeResult]) -> str:
    """Return the verdict on grouping at all, if one branch for all tasks takes part."""
    rows = {
        result.recipe: (result, result.one_branch)
        for result in results
        if result.one_branch is not None and result.one_branch.high is not None
    }
    grouped = [pair for pair in rows.values() if pair[0].name != _SINGLE_TASK]
    one = next((result for result in results if result.name == ONE_BRANCH), None)
    if not grouped or one is None:
        return ""
    best, change = max(grouped, key=lambda pair: (pair[1].sign, pair[1].mean or 0.0))
    ratio = _ratio(best, one)
    if change.sign > 0:
        text = (
            f"More than one branch pays: {best.recipe} is {percent(change.mean or 0.0)} % better "
            f"than one branch ({_interval(change)}), with {times(ratio)} times the parameters."
        )
    else:
        if all(each.sign < 0 for _, each in grouped):
            text = "Nothing here: take K = 1. Every grouping is worse than one branch"
        else:
            changes = [each for _, each in grouped]
            text = _none_better("grouping", "one branch", changes, "nothing here, take K = 1")[:-1]
        text += f"; one branch has {times(1 / ratio)} times the parameters of {best.recipe}."
    single = next((pair for pair in rows.values() if pair[0].name == _SINGLE_TASK), None)
    if single is not None and single[1].sign > 0:
        text += (
            f" One network for each task is {percent(single[1].mean or 0.0)} % better than one "
            f"branch, with {times(_ratio(single[0], one))} times the parameters."
        )
    return text


def _enough_branches(results: Sequence[RecipeResult]) -> str:
    """Return up to which number of branches more of them are better, where it varies."""
    varied = [r for r in results if r.fewer is not None and r.fewer.high is not None]
    learned = [r for r in varied if r.name != "random"] or varied
    chain = [r for r in learned if r.name == learned[0].name]
    if not chain:
        return ""
    better = [r for r in chain if r.fewer is not None and r.fewer.sign > 0]
    if not better:
        return f"{chain[0].name}: no K is better than the next smaller one."
    largest = max(better, key=lambda r: r.branches or 0)
    return (
        f"{largest.name}: K = {largest.branches} is the largest K that is better than the next "
        "smaller one."
    )


def _none_better(
    what: str, reference: str, changes: Sequence[PairedChange], conclusion: str
) -> str:
    """Return the verdict that no row is better than the reference.

    Args:
        conclusion: If the gain is surely small; else more seeds may find one.
    """
    most = max(change.high for change in changes if change.high is not None)
    seeds = _count(max(len(change.seeds) for change in changes), "seed")
    text = f"No {what} is better than {reference} by a difference that {seeds} can show"
    if most <= SMALL:
        return f"{text}, and no interval goes beyond {signed(most)} %: {conclusion}."
    return f"{text}. Undecided: an interval goes up to {signed(most)} %; compare more seeds."


def _listed(rows: Sequence[tuple[str, PairedChange]]) -> str:
    """Return the labels with their changes and the verb, the best first; empty without rows."""
    ordered = sorted(rows, key=lambda row: -(row[1].mean or 0.0))
    parts = [f"{label} ({signed(change.mean or 0.0)} %)" for label, change in ordered]
    if len(parts) < 2:
        return "".join(f"{part} is" for part in parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]} are"


def _ratio(row: RecipeResult, other: RecipeResult) -> float:
    assert row.parameters is not None and other.parameters is not None, "they have finished runs"
    return row.parameters.mean / other.parameters.mean


def _seed_list(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
