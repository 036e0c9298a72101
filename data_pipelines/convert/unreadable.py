"""Labels that cannot be read, or whose meaning is not clear: counted, shown, and refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from data_pipelines.convert.tally import OTHER_REASONS
from data_pipelines.errors import DataError, UnreadableColumnsError

_REASONS_SHOWN = 5  # of values that cannot be read, in an error


class NegativeWords:
    """Which of -1 and 0 stand for 0 in each binary field, over all shards so far."""

    def __init__(self) -> None:
        self._words: defaultdict[str, set[str]] = defaultdict(set)

    def add(self, negatives: Mapping[str, Iterable[str]]) -> None:
        """Add those of a shard.

        Raises:
            DataError: A field has both: -1 could be a negative label or no label.
        """
        for name, words in negatives.items():
            self._words[name].update(words)
            if len(self._words[name]) > 1:
                raise DataError(
                    f"fields.{name}: binary, with -1 as well as 0; say what -1 is in the mapping "
                    "file, by `values: {-1: null}` for no label or `values: {-1: 0}`"
                )


def check_readable(
    labelled: Mapping[str, int], missing: Mapping[str, Mapping[str, int]], advice: str = ""
) -> None:
    """Check that no field lost all of its labels.

    Args:
        labelled: Number of labels that were read, by field.
        missing: Number of labels that were left out, by field and reason.
        advice: What the user can do, at the end of the message.

    Raises:
        UnreadableColumnsError: Labels of a field were found, and none was read.
    """
    lost = [
        f"fields.{name}: none of {sum(reasons.values())} labels can be read, found "
        f"{counted(reasons, _REASONS_SHOWN)}"
        for name, reasons in missing.items()
        if sum(reasons.values()) and not labelled.get(name)
    ]
    if lost:
        raise UnreadableColumnsError("\n".join(lost) + advice)


def counted(reasons: Mapping[str, int], most: int | None = None) -> str:
    """Return counts by reason as text, the most frequent first: `'maybe' x 312, no file x 2`.

    Args:
        reasons: Number of samples or labels, by reason.
        most: Number of reasons to name; None names all.
    """
    ranked = sorted(
        reasons.items(), key=lambda entry: (entry[0] == OTHER_REASONS, -entry[1], entry[0])
    )
    named = [f"{reason} x {count}" for reason, count in ranked[:most]]
    more = len(ranked) - len(named)
    return ", ".join(named + ([f"{more} more"] if more else []))
