"""Values of sources: what is 0 or 1, a class id or a number, in any type of column."""

import math

import numpy as np
import pytest

from data_pipelines.convert.mapping import described_field
from data_pipelines.convert.tally import MissingLabel
from data_pipelines.convert.values import ValueReader
from data_pipelines.errors import DataError

MOODS = ("glad", "sad", "angry")


def reader(kind, classes=(), numbers_are_ids=False, **values):
    return ValueReader(kind, tuple(classes), values, numbers_are_ids)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, 1) for value in (1, 1.0, True, "1", "1.0", "true", "TRUE", "yes", "Y", " 1 ")),
        *((value, 0) for value in (0, 0.0, False, "0", "0.0", "false", "No", "n", "f", "-0")),
        *((value, 0) for value in (-1, -1.0, "-1", "-1.0")),
        *((value, None) for value in (None, "", "  ", math.nan)),
        (np.float64(1), 1),
    ],
)
def test_binary_values(value, expected):
    assert reader("binary").read(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(2, 2), (2.0, 2), ("2", 2), ("2.0", 2), ("002", 2), ("angry", 2), (" glad ", 0), (None, None)],
)
def test_class_names_and_ids(value, expected):
    assert reader("multiclass", MOODS).read(value) == expected


def test_names_that_are_numbers_are_names_but_not_in_a_column_of_ids():
    stars = [str(number) for number in range(1, 6)]
    assert [reader("multiclass", stars).read(value) for value in (1, "5", 5.0)] == [0, 4, 4]
    ids = reader("multiclass", stars, numbers_are_ids=True)
    assert [ids.read(value) for value in (1, 4, "1")] == [1, 4, 0]
    with pytest.raises(MissingLabel, match="'0'"):  # as an id it would be the class 1
        reader("multiclass", stars).read("0")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, 7.0), ("7", 7.0), (" 1.5e2 ", 150.0), (True, 1.0), ("-.5", -0.5), (math.nan, None)],
)
def test_numbers(value, expected):
    assert reader("regression").read(value) == expected


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("regression", value) for value in ("heavy", "1_000", "inf", math.inf, 1e39, "1,5", [1])),
        *(("binary", value) for value in (2, 0.5, "maybe", "1.5", -2)),
        *(("multiclass", value) for value in (3, -1, 1.5, "Glad", "bored")),
    ],
)
def test_what_cannot_be_read_is_named(kind, value):
    classes = MOODS if kind == "multiclass" else ()
    with pytest.raises(MissingLabel) as caught:
        reader(kind, classes).read(value)
    assert str(caught.value) == repr(str(value))


def test_a_value_without_a_meaning_shows_no_credentials_and_no_control_characters():
    with pytest.raises(MissingLabel) as caught:
        reader("binary").read("https://me:secret@host/a?key=1\x1b[31m")
    assert str(caught.value) == "'https://host/a'"
    with pytest.raises(MissingLabel) as caught:
        reader("binary").read("x" * 1000)
    assert len(str(caught.value)) < 70


def test_the_mapping_says_what_values_stand_for():
    entry = {"member": "labels.json", "key": "x"}
    mood = described_field(
        "fields.x",
        entry | {"kind": "multiclass", "classes": list(MOODS),
                 "values": {"happy": "glad", 9: 2, "NA": None}},
    )  # fmt: skip
    read = ValueReader.of_field(mood).read
    assert [read(value) for value in ("happy", "9", 9.0, "NA", "sad")] == [0, 2, 2, None, 1]
    sign = described_field(
        "fields.x", entry | {"kind": "binary", "values": {-1: None, "on": "yes"}}
    )
    read = ValueReader.of_field(sign).read
    assert [read(value) for value in ("-1", -1, "on", "0")] == [None, None, 1, 0]
    weight = described_field("fields.x", entry | {"kind": "regression", "values": {"light": 2.5}})
    assert ValueReader.of_field(weight).read("light") == 2.5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"values": {True: 1}}, r"fields\.x\.values: found true, for which YAML also takes .* yes"),
        ({"values": {"a": 2}}, r"values\.a 2: must be an integer from 0 to 1, or null"),
        ({"kind": "multiclass", "classes": [False, True]}, r"fields\.x\.classes: found false"),
        ({"values": {"a": "maybe"}}, r"fields\.x: values\.a"),
    ],
)
def test_wrong_meanings_are_refused(change, expected):
    entry = {"member": "labels.json", "key": "x", "kind": "binary"} | change
    with pytest.raises(DataError, match=expected):
        described_field("fields.x", entry)
