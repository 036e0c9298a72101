"""Divide drawings among the splits so that variants of one drawing stay together.

Called by `build` only: the embedded file holds the split of every drawing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_pipelines.synthetic.icons.tasks import MIN_POSITIVES

_SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}
_SPLITS = tuple(_SHARES)
_SIZE_WEIGHT = 100.0  # of unequal sizes, where a label with enough positives in a split counts 1
_TRAIN_WEIGHT = 0.3  # of a label that has most of its positives in train
_MOST = 0.6


@dataclass(frozen=True)
class Variant:
    """What decides the split of a drawing.

    Attributes:
        name: Its name.
        related: Keys, of which equal ones put two drawings into one family.
        labels: Its positive labels.
    """

    name: str
    related: tuple[str, ...]
    labels: frozenset[str]


def divide(variants: Sequence[Variant]) -> dict[str, str]:
    """Return the split of every drawing by name.

    All families start in train. One after another, small ones first, they move to the split where
    the most labels have `MIN_POSITIVES` in all splits and most of their positives in train, and
    where the sizes are closest to `_SHARES`, until none moves.
    """
    families = _families(variants)
    enough = sum(MIN_POSITIVES.values())
    totals = Counter(label for variant in variants for label in variant.labels)
    counted = {
        family: Counter(
            label for member in members for label in member.labels if totals[label] >= enough
        )
        for family, members in families.items()
    }
    split_of = dict.fromkeys(families, "train")
    state = _State(totals)
    for family, split in split_of.items():
        state.add(split, counted[family], len(families[family]), 1)
    order = sorted(families, key=lambda family: (len(families[family]), family))
    moved = True
    while moved:
        moved = False
        for family in order:
            best = state.best(split_of[family], counted[family], len(families[family]))
            moved |= best != split_of[family]
            split_of[family] = best
    return {
        member.name: split_of[family] for family, members in families.items() for member in members
    }


class _State:
    """Positives by split and label, and drawings by split."""

    def __init__(self, totals: Counter[str]) -> None:
        self._totals = totals
        self._positives: dict[str, Counter[str]] = {split: Counter() for split in _SPLITS}
        self._sizes = dict.fromkeys(_SPLITS, 0)

    def add(self, split: str, counts: Counter[str], size: int, sign: int) -> None:
        for label, count in counts.items():
            self._positives[split][label] += sign * count
        self._sizes[split] += sign * size

    def best(self, split: str, counts: Counter[str], size: int) -> str:
        """Move a family to its best split, and return that; ties prefer the present split."""
        self.add(split, counts, size, -1)
        scores = {}
        for candidate in (split, *_SPLITS):
            self.add(candidate, counts, size, 1)
            scores[candidate] = round(self._score(counts), 9)
            self.add(candidate, counts, size, -1)
        best = max(scores, key=scores.__getitem__)
        self.add(best, counts, size, 1)
        return best

    def _score(self, labels: Counter[str]) -> float:
        reached = sum(
            min(1.0, self._positives[split][label] / least)
            for label in labels
            for split, least in MIN_POSITIVES.items()
        )
        trained = sum(
            min(1.0, self._positives["train"][label] / (_MOST * self._totals[label]))
            for label in labels
        )
        total = sum(self._sizes.values())
        unequal = sum(
            (self._sizes[split] / total - share) ** 2 / share for split, share in _SHARES.items()
        )
        return reached + _TRAIN_WEIGHT * trained - _SIZE_WEIGHT * unequal


def _families(variants: Iterable[Variant]) -> dict[str, list[Variant]]:
    """Return the drawings that are connected by equal keys, by the smallest name among them."""
    family_of: dict[str, list[Variant]] = {}
    for variant in variants:
        joined = {id(family_of[key]): family_of[key] for key in variant.related if key in family_of}
        family = [member for other in joined.values() for member in other] + [variant]
        for member in family:
            family_of |= dict.fromkeys(member.related, family)
    unique = {id(family): family for family in family_of.values()}
    return {min(member.name for member in family): family for family in unique.values()}
