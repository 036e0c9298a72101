"""The kind of a column of scalar labels, inferred from the values that occur in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_pipelines.convert.values import NEGATIVE, binary, number, quoted
from data_pipelines.reading.values import whole_number
from dmtg.names import is_text

# Texts that mean no value in files of other programs. In a column of names, none can be a class.
EMPTY_WORDS = frozenset({"na", "n/a", "#n/a", "nan", "null", "none", "-", "?"})
_NAMES = frozenset({"none", "-", "?"})
MAX_TEXT_CLASSES = 1000
_MAX_NUMBER_CLASSES = 20  # whole numbers of more values are a regression
_FEW_NUMBERS = 50  # whole numbers of so many values may be class ids nevertheless
_CELLS_PER_CLASS = 2  # on average at least; texts with fewer are names or captions
_CELLS_PER_NUMBER = 3
_MOST = 0.9  # share of the cells that decides a kind; the others cannot be read
_HALF = 0.5  # the same, of texts that cannot be the names of classes
_MIN_ROW_NUMBERS = 10
_IDENTIFIERS = frozenset({"id", "index", "idx", "key", "uuid", "row", "number"})


@dataclass(frozen=True)
class InferredKind:
    """What a column is taken for.

    Attributes:
        entry: The entries of a mapping's field; None for a column that is no label.
        note: What to tell the user: why it is no label, or what could be meant instead.
    """

    entry: dict[str, Any] | None
    note: str = ""


def infer_kind(name: str, counts: Mapping[str, int]) -> InferredKind:
    """Return the kind of a column.

    Args:
        name: Name of the column.
        counts: Number of cells of each text, without empty ones.
    """
    if not counts:
        return InferredKind(None, "empty")
    empty = {text for text in counts if text.casefold() in EMPTY_WORDS}
    kept = {text: count for text, count in counts.items() if text not in empty}
    if not kept:
        return InferredKind(None, f"only {', '.join(sorted(map(quoted, empty)))}")
    inferred = _numeric(name, kept, _MOST) or _text(kept, counts)
    if inferred.entry is None:
        inferred = _numeric(name, kept, _HALF) or inferred
    if inferred.entry is None:
        return inferred
    if inferred.entry["kind"] == "multiclass":
        empty -= set(inferred.entry["classes"])
    if not empty:
        return inferred
    missing = dict.fromkeys(sorted(empty))
    return InferredKind({**inferred.entry, "values": missing}, inferred.note)


def _numeric(name: str, counts: Mapping[str, int], most: float) -> InferredKind | None:
    """Return the kind of a column of numbers or of two words; None for one of texts.

    Args:
        name: Name of the column.
        counts: Number of cells of each text.
        most: Share of the cells that are numbers, or such words, at least.
    """
    total = sum(counts.values())
    numbers = {text: value for text in counts if (value := number(text)) is not None}
    words = [text for text in counts if binary(text) is not None]
    other_words = counts.keys() - numbers.keys() - set(words)
    is_binary = not (numbers.keys() - set(words)) and not {"-1", "0"} <= _forms(words)
    known = {binary(text) for text in words}
    both = len(known) == 2 or len(words) == len(counts)  # of `f` and `m`, f is not false
    if words and is_binary and both and _share(counts, words) >= most:
        note = "" if len(known) == 2 else f"only {known.pop()} occurs"
        return InferredKind({"kind": "binary"}, note)
    if not numbers or _share(counts, numbers) < most or (other_words and len(numbers) < 2):
        return None
    whole = {whole_number(text) for text in numbers}
    if None in whole:
        return InferredKind({"kind": "regression"})
    values = sorted(int(text) for text in whole if text is not None)
    if len(values) == total and _are_row_numbers(name, values):
        return InferredKind(None, "numbers of rows")
    cells = sum(counts[text] for text in numbers)
    if len(values) <= _MAX_NUMBER_CLASSES and cells >= _CELLS_PER_NUMBER * len(values):
        if len(values) == 1:
            return InferredKind({"kind": "regression"}, f"only {values[0]} occurs")
        note = "if -1 is no label: `values: {-1: null}`" if values[0] == -1 else ""
        return InferredKind({"kind": "multiclass", "classes": [str(v) for v in values]}, note)
    few = values[0] >= 0 and len(values) <= _FEW_NUMBERS
    note = "whole numbers; if they are class ids: `kind: multiclass`" if few else ""
    return InferredKind({"kind": "regression"}, note)


def _text(counts: Mapping[str, int], with_empty: Mapping[str, int]) -> InferredKind:
    """Return the kind of a column of texts, of which some can be the names of classes."""
    names = {**counts, **{t: c for t, c in with_empty.items() if t.casefold() in _NAMES}}
    total = sum(names.values())
    if not all(map(is_text, names)):
        return InferredKind(None, "texts that are no names of classes")
    if len(names) == 1:
        return InferredKind(None, f"only {quoted(next(iter(names)))}")
    if len(names) > MAX_TEXT_CLASSES or total < _CELLS_PER_CLASS * len(names):
        return InferredKind(None, f"{len(names)} different texts in {total} rows")
    others = sorted(text for text in names if binary(text) is None)
    polar = len({binary(text) for text in names} - {None}) == 2
    listed = ", ".join(map(quoted, others))
    note = f"`kind: binary` would leave {listed} out" if polar and len(others) <= 2 else ""
    return InferredKind({"kind": "multiclass", "classes": sorted(names)}, note)


def _forms(words: list[str]) -> set[str]:
    """Return which of -1 and 0 are among words; `no` and the like stand for 0."""
    negatives = {whole_number(word) or word.casefold() for word in words} & NEGATIVE
    return {"-1" if word == "-1" else "0" for word in negatives}


def _share(counts: Mapping[str, int], texts: Mapping[str, float] | list[str]) -> float:
    return sum(counts[text] for text in texts) / sum(counts.values())


def _are_row_numbers(name: str, values: list[int]) -> bool:
    """Return whether numbers that are all different count or name the rows."""
    if len(values) < _MIN_ROW_NUMBERS:
        return False
    words = set(name.casefold().replace("_", " ").replace("-", " ").split())
    return values[-1] - values[0] + 1 == len(values) or bool(words & _IDENTIFIERS)
