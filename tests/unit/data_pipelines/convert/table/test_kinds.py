"""Kinds of columns from the values in them."""

import pytest

from data_pipelines.convert.table.kinds import infer_kind


def entry(counts, name="x"):
    return infer_kind(name, counts).entry


def multiclass(*names, **more):
    return {"kind": "multiclass", "classes": list(names), **more}


@pytest.mark.parametrize(
    "texts",
    [("0", "1"), ("0.0", "1.0"), ("-1", "1"), ("true", "false"), ("Yes", "no"), ("1", "0.0", "no")],
)
def test_two_words_are_binary(texts):
    assert entry(dict.fromkeys(texts, 5)) == {"kind": "binary"}


def test_a_constant_is_binary_with_a_note():
    assert infer_kind("x", {"1": 30}).note == "only 1 occurs"


def test_some_other_texts_of_a_binary_column_cannot_be_read():
    assert entry({"yes": 50, "no": 45, "maybe": 5}) == {"kind": "binary"}
    assert entry({"yes": 50, "no": 30, "maybe": 20}) == multiclass("maybe", "no", "yes")
    note = infer_kind("x", {"1": 9, "0": 9, "maybe": 9}).note
    assert note == "`kind: binary` would leave 'maybe' out"


def test_letters_that_are_words_by_chance():
    assert entry({"f": 95, "m": 5}) == multiclass("f", "m")


def test_minus_one_beside_zero_is_a_class_with_a_note():
    found = infer_kind("x", {"-1": 10, "0": 20, "1": 20})
    assert found.entry == multiclass("-1", "0", "1")
    assert found.note == "if -1 is no label: `values: {-1: null}`"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"0": 5, "1.0": 5, "2": 5, "10": 5}, multiclass("0", "1", "2", "10")),
        ({str(n): 2 for n in range(15)}, {"kind": "regression"}),
        ({str(n): 9 for n in range(30)}, {"kind": "regression"}),
        ({"0.5": 100, "1": 100}, {"kind": "regression"}),
        ({f"{n}.5": 1 for n in range(40)} | {"unknown": 2}, {"kind": "regression"}),
        (
            {f"{n}.5": 1 for n in range(40)} | {f"about {n}": 1 for n in range(30)},
            {"kind": "regression"},
        ),
        ({"glad": 3, "sad": 1}, multiclass("glad", "sad")),
        ({f"name {n}": 1 for n in range(40)}, None),
        ({str(n): 1 for n in range(40)}, None),
        ({"only": 40}, None),
        ({"two\nlines": 20, "x" * 501: 20}, None),
        ({str(10**20 + n * n): 1 for n in range(40)}, {"kind": "regression"}),
        ({}, None),
    ],
)
def test_numbers_and_names(counts, expected):
    assert entry(counts) == expected


def test_numbers_of_rows_are_no_label_but_different_whole_numbers_can_be():
    different = {str(n * n): 1 for n in range(40)}
    assert entry(different, "price") == {"kind": "regression"}
    assert entry(different, "user_id") is None


def test_texts_for_no_value_are_said_to_be_none():
    assert entry({"1": 9, "0": 9, "NA": 3}) == {"kind": "binary", "values": {"NA": None}}
    assert entry({"1.5": 9, "2.5": 9, "?": 3, "nan": 1}) == {
        "kind": "regression",
        "values": {"?": None, "nan": None},
    }
    assert entry({"Goatee": 9, "None": 9, "N/A": 2}) == multiclass(
        "Goatee", "None", values={"N/A": None}
    )
    assert entry({"NA": 9}) is None
