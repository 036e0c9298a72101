"""What a value of a source stands for: 0 or 1, a class id, or a number; in any type of column."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from data_pipelines.convert.tally import MissingLabel
from data_pipelines.reading.fields import MAX_FLOAT32
from data_pipelines.reading.values import value_text, whole_number
from data_pipelines.shards.field import Field
from dmtg.names import one_line
from dmtg.secrets import without_secrets_in

POSITIVE = frozenset({"1", "true", "yes", "y", "t"})
NEGATIVE = frozenset({"0", "-1", "false", "no", "n", "f"})
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_LONGEST = 60  # characters of a value that is shown


@dataclass(frozen=True)
class ValueReader:
    """Read the values of one scalar field.

    A value is looked up in `values` first. Otherwise a binary field takes `POSITIVE` and `NEGATIVE`
    words in any case, a multiclass field the names of its classes and their ids, a regression
    finite numbers. Whole floats are integers, and a number may be a text.

    Attributes:
        kind: Kind of the field.
        classes: Names of the classes of a multiclass field.
        values: What a value stands for, by its text; None stands for no label.
        numbers_are_ids: Whether a number is a class id even if a class has that name.
    """

    kind: str
    classes: tuple[str, ...] = ()
    values: Mapping[str, float | None] = field(default_factory=dict)
    numbers_are_ids: bool = False

    @classmethod
    def of_field(cls, described: Field, *, numbers_are_ids: bool = False) -> ValueReader:
        """Return the reader of a field that a mapping describes."""
        return cls(described.kind, described.classes, described.values, numbers_are_ids)

    def read(self, value: object) -> int | float | None:
        """Return the value to store; None for no label.

        Raises:
            MissingLabel: It cannot be read; the message is the value.
        """
        text = value_text(value)
        if text is None:
            return None
        whole = whole_number(text)
        for form in filter(None, (text, whole)):
            if form in self.values:
                return _stored(self.kind, self.values[form])
        if self.kind == "regression":
            result = float(value) if isinstance(value, bool) else number(text)
        elif self.kind == "binary":
            result = binary(text)
        else:
            result = self._class_id(value, text, whole)
        if result is None:
            raise MissingLabel(quoted(text))
        return result

    def negative(self, value: object) -> str | None:
        """Return which word, -1 or 0, made a binary label 0; None where `values` says so."""
        text = value_text(value) or ""
        whole = whole_number(text)
        if text in self.values or whole in self.values:
            return None
        return "-1" if whole == "-1" else "0"

    def _class_id(self, value: object, text: str, whole: str | None) -> int | None:
        named = not (self.numbers_are_ids and isinstance(value, int | float))
        if named:
            for form in (text, whole):
                if form in self._ids:
                    return self._ids[form]
            if not self._has_plain_ids:
                return None
        if isinstance(value, bool):
            return int(value)
        if whole is not None and 0 <= int(whole) < len(self.classes):
            return int(whole)
        return None

    @cached_property
    def _ids(self) -> dict[str | None, int]:
        return {name: number for number, name in enumerate(self.classes)}

    @cached_property
    def _has_plain_ids(self) -> bool:
        """Whether no class has the name of another one's id, as the first of 1, 2, 3 has."""
        numbers = (whole_number(name) for name in self.classes)
        return all(whole in (None, str(number)) for number, whole in enumerate(numbers))


def number(text: str) -> float | None:
    """Return the finite number that a text is; None for others."""
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if abs(value) <= MAX_FLOAT32 else None


def binary(text: str) -> int | None:
    """Return 0 or 1 for a word of `NEGATIVE` or `POSITIVE`, also as a whole float; else None."""
    word = whole_number(text) or text.casefold()
    return 1 if word in POSITIVE else 0 if word in NEGATIVE else None


def quoted(text: str) -> str:
    """Return a value as it is counted and shown."""
    return repr(one_line(without_secrets_in(text), _LONGEST))


def _stored(kind: str, value: float | None) -> int | float | None:
    return value if value is None or kind == "regression" else int(value)
