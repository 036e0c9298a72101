"""The choice of validation samples by a hash, so that a group of samples stays in one split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from data_pipelines.errors import DataError

TRAIN, VAL = "train", "val"
# Names of splits in other datasets, in lower case, and the name in a manifest.
SPLIT_NAMES = {
    "train": TRAIN, "training": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "dev": VAL,
    "test": "test", "testing": "test",
}  # fmt: skip


def group_hash(group: str) -> str:
    """Return a hash of the name of a group, as hex digits."""
    return hashlib.sha256(group.encode(errors="surrogatepass")).hexdigest()[:16]


def check_val_share(share: float | None, splits: Mapping[str, object]) -> None:
    """Check that a share of `train` can become the split `val`.

    Raises:
        DataError: There is no `train`, or there is a `val` already.
    """
    if share and (TRAIN not in splits or VAL in splits):
        raise DataError(
            f"val_share {share:g}: divides the split train where there is no val; the splits are "
            f"{', '.join(splits)}"
        )


def val_groups(groups: Sequence[str], share: float) -> frozenset[str]:
    """Return the groups whose samples become the split `val`.

    The groups are taken in the order of their hashes while this brings the number of samples
    closer to the share. At least one group is taken, and at least one is left.

    Args:
        groups: The hash of the group of each sample of `train`.
        share: Share of the samples.

    Raises:
        DataError: There are fewer than two groups.
    """
    if not share:
        return frozenset()
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise DataError(
            f"val_share {share:g}: {len(sizes)} groups in train, two are needed to divide it"
        )
    target, count = share * len(groups), 0
    chosen: set[str] = set()
    for group in sorted(sizes)[: len(sizes) - 1]:
        if not chosen or abs(count + sizes[group] - target) < abs(count - target):
            chosen.add(group)
            count += sizes[group]
        if count >= target:
            break
    return frozenset(chosen)
