"""Names from outside cannot leave a folder, and cannot control a terminal."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmtg.names import MAX_LENGTH, check_file_name, is_file_name, printable, to_file_name


@pytest.mark.parametrize("name", ["depth_zbuffer", "5_o_Clock_Shadow", "Pale Skin", "größe", "a.b"])
def test_usual_names_are_allowed(name: str) -> None:
    assert check_file_name("task", name) == name


@pytest.mark.parametrize(
    "name",
    [
        "a\n",
        "a\\b",
        "a\0",
        "",
        ".",
        "..",
        "../a",
        "/a",
        "a/b",
        "-a",
        ".a",
        " a",
        "\x1b[2J",
        101 * "x",
    ],
)
def test_other_names_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"^task is .*, must be 1 to 100 letters"):
        check_file_name("task", name)


@given(st.text())
def test_a_file_name_of_any_key_stays_in_its_folder(key: str) -> None:
    name = to_file_name(key)
    assert is_file_name(name)
    folder = Path("/out")
    assert (folder / name).parent == folder
    assert len(name) <= MAX_LENGTH


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", fullmatch=True))
def test_a_key_that_is_a_file_name_is_kept(key: str) -> None:
    assert to_file_name(key) == key


@given(st.text())
def test_shown_text_has_no_control_characters(text: str) -> None:
    assert all(c.isprintable() or c in "\n\t" for c in printable(text))
    if text.isprintable():
        assert printable(text) == text
