"""The scalar labels of one field in existing shards, whose records are not written again.

A value that a reader of shards takes for a label as it is stays as it is. What other values stand
for becomes a part of the field, so that every reader of the shards takes them alike.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from data_pipelines.convert.tally import MissingLabel
from data_pipelines.convert.values import ValueReader, quoted
from data_pipelines.errors import DataError
from data_pipelines.reading.fields import Label, LabelRequest
from data_pipelines.reading.values import value_text
from data_pipelines.shards.field import MAX_VALUES, Field


class StoredValues:
    """What the values of a field stand for, in the shards that were read so far.

    Args:
        name: Name of the field.
        field: Its description in a mapping.

    Attributes:
        labels: The labels that were read; of a binary or multiclass field class ids.
        meanings: What values stand for that are no label as they are, by text; None for no label.
        unreadable: Number of values that cannot be read, by value.
        negatives: Which of -1 and 0 stood for 0 in a binary field.
    """

    def __init__(self, name: str, field: Field) -> None:
        self._name = name
        self._reader = ValueReader.of_field(field)
        self._plain = Label(LabelRequest(name, name), field.model_copy(update={"values": {}}))
        self._key = field.key or ""
        self.labels: list[float] = []
        self.meanings: dict[str, float | None] = {}
        self.unreadable: Counter[str] = Counter()
        self.negatives: set[str] = set()

    def add(self, record: dict[str, Any]) -> None:
        """Add the value in the record of a sample, if it has one.

        Raises:
            DataError: Too many different values are no labels as they are.
        """
        if self._key not in record:
            return
        value = record[self._key]
        text = value_text(value) or ""  # the text of null, too
        label: float | None = None
        try:
            label = self._reader.read(value)
        except MissingLabel as missing:
            self.unreadable[str(missing)] += 1
        if label is not None:
            self.labels.append(label)
        if self._reader.kind == "binary" and label == 0 and (word := self._reader.negative(value)):
            self.negatives.add(word)
        if not self._is_plain(record, label):
            self.meanings[text] = label
            self.check(self.meanings)

    def check(self, meanings: dict[str, float | None]) -> None:
        """Check the number of values that a field has to describe.

        Raises:
            DataError: They are too many.
        """
        if len(meanings) > MAX_VALUES:
            raise DataError(
                f"fields.{self._name}: more than {MAX_VALUES} different values are not stored as "
                f"numbers or class ids, such as {quoted(next(iter(meanings)))}; convert them"
            )

    def _is_plain(self, record: dict[str, Any], label: float | None) -> bool:
        """Return whether readers of the shards take the value for this label as it is."""
        try:
            return self._plain.scalar(record) == label
        except DataError:
            return False
