"""The closest allowed name."""

import pytest

from dmtg.suggestions import closest, did_you_mean

RECIPES = ("affinity", "fixed", "grad_tag", "published", "random", "single_task")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("afinity", "affinity"),
        ("publishd", "published"),
        ("Random", "random"),
        ("single-task", "single_task"),
        ("best", None),
        ("", None),
    ],
)
def test_closest(name, expected):
    assert closest(name, RECIPES) == expected


def test_the_case_of_the_allowed_name_is_kept():
    assert closest("mustache", ["Mustache", "Goatee"]) == "Mustache"


def test_the_end_of_a_message():
    assert did_you_mean("fixd", RECIPES) == "; did you mean 'fixed'?"
    assert did_you_mean("best", RECIPES) == did_you_mean(5, RECIPES) == did_you_mean(None, []) == ""
