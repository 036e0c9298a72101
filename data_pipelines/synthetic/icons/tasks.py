"""The binary tasks of the drawings: words of their names, and tags."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from data_pipelines.synthetic.icons.icon_set import Icon

# A label with fewer positives in a split is no task: it could not be learned or not be measured.
MIN_POSITIVES = {"train": 12, "val": 4, "test": 4}
TAG_PREFIX = "tag_"


def positives(name: str, tags: Iterable[str]) -> set[str]:
    """Return the labels that are 1: words of the name, and tags as `tag_device_tech`."""
    return _words(name) | {
        TAG_PREFIX + re.sub(r"[^a-z0-9]+", "_", tag.lower()).strip("_") for tag in tags
    }


def task_names(icons: Sequence[Icon]) -> list[str]:
    """Return the labels with enough positives in every split: words, then tags, each sorted."""
    counts: dict[str, Counter[str]] = {split: Counter() for split in MIN_POSITIVES}
    for icon in icons:
        counts[icon.split].update(positives(icon.name, icon.tags))
    names = {
        name
        for name in counts["train"]
        if all(counts[split][name] >= least for split, least in MIN_POSITIVES.items())
    }
    return sorted(names, key=lambda name: (name.startswith(TAG_PREFIX), name))


def labels(icon: Icon, tasks: Iterable[str]) -> dict[str, int | float]:
    """Return 0 or 1 for each task that is known.

    A word that only an alias of the drawing has is left out: it may fit or not.
    """
    positive = positives(icon.name, icon.tags)
    unknown = set().union(*map(_words, icon.aliases)) - positive
    return {task: int(task in positive) for task in tasks if task not in unknown}


def _words(name: str) -> set[str]:
    """Return the parts of a name that are words: at least two letters."""
    return {part for part in name.split("-") if part.isalpha() and len(part) > 1}
