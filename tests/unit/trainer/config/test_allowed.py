"""The words for what a type allows."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from dmtg.registry import Registry
from trainer.config.allowed import NameIn, Type, Words, allowed, either, in_yaml
from trainer.config.section import Section

SHAPES: Registry[Any] = Registry("shape")
for name in ("circle", "square"):
    SHAPES.register(name)(type(name, (), {"__module__": "shapes"}))


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (Annotated[int, Field(gt=0)], "a whole number of at least 1"),
        (Annotated[int, Field(gt=0, lt=10)], "a whole number from 1 to 9"),
        (Annotated[int, Field(ge=0, le=10**12)], "a whole number from 0 to 10^12"),
        (Annotated[int, Field(ge=0, le=2**63 - 1)], "a whole number from 0 to 2^63 - 1"),
        (float, "a number"),
        (Annotated[float, Field(gt=0)] | None, "a number above 0, or null"),
        (Annotated[float, Field(gt=0, le=1)], "a number above 0 and at most 1"),
        (Annotated[float, Field(ge=0, lt=1)], "a number of at least 0 and below 1"),
        (Annotated[float, Field(ge=0, le=0.5)], "a number from 0 to 0.5"),
        (bool, "true or false"),
        (bool | Literal["fast"], "true, false or fast"),
        (Literal["a", "b", "c"], "a, b or c"),
        (Literal["a", "b"] | None, "a, b or null"),
        (str, "text"),
        (Path, "a path"),
        (Path | str, "a path or text"),
        (tuple[int, ...], "a list of whole numbers"),
        (tuple[Literal["a", "b"], ...], "a list of values that are a or b"),
        (tuple[float, float], "a list of 2 numbers"),
        (tuple[str, int], "a list of text and a whole number"),
        (Annotated[tuple[Path, ...], Field(min_length=1)], "a list of one or more paths"),
        (dict[str, Any], "a mapping"),
        (Any, "any value"),
        (Annotated[str, Words("START:END")] | None, "START:END or null"),
        (Annotated[str, NameIn(SHAPES)], "circle or square"),
    ],
)
def test_words(annotation, words):
    assert allowed(Type.of(annotation)) == words


def test_either():
    assert [either(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a",
        "a or b",
        "a, b or c",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ("5", "'5'"),
        (5, "5"),
        ([1, "a", None], "[1, 'a', null]"),
        ({"a": {"b": False}}, "{a: {b: false}}"),
    ],
)
def test_values_look_as_in_yaml(value, text):
    assert in_yaml(value) == text


class Own(Section):
    """A section as a plug-in may have it."""

    shape: Annotated[str, NameIn(SHAPES)] = "circle"
    """The shape of
    the thing."""
    size: int = 2
    flags: tuple[bool, ...] = ()
    sizes: tuple[float, ...] = ()


def test_the_text_below_a_key_is_its_documentation():
    assert Own.model_fields["shape"].description == "The shape of\nthe thing."


def test_names_are_checked():
    assert Own(shape="square").shape == "square"
    with pytest.raises(ValueError, match="shape is 'blob', must be one of circle, square"):
        Own(shape="blob")


@pytest.mark.parametrize("values", [{"size": True}, {"sizes": [1.0, False]}])
def test_true_is_no_number(values):
    with pytest.raises(ValueError, match=r"valid (integer|number)"):
        Own.model_validate(values)


def test_true_is_a_flag():
    assert Own.model_validate({"flags": [True, False]}).flags == (True, False)


def test_null_is_an_empty_section():
    assert Own.model_validate(None) == Own()
