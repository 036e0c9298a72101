"""Names from outside cannot leave a folder, and cannot control a terminal."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmtg.names import (
    MAX_LENGTH,
    MAX_TEXT,
    check_file_name,
    check_text,
    is_file_name,
    one_line,
    printable,
    to_file_name,
)


@pytest.mark.parametrize(
    "name", ["depth_zbuffer", "5_o_Clock_Shadow", "Pale Skin", "größe", "हिन्दी", "a.b"]
)
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
        34 * "\N{CJK UNIFIED IDEOGRAPH-4E00}",
    ],
)
def test_other_names_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"^task is .*, must be 1 to 100 letters"):
        check_file_name("task", name)


@pytest.mark.parametrize("letter", ["x", "\u0436", "\u4e00"])
def test_the_longest_name_of_any_script_is_a_name_that_file_systems_take(letter, tmp_path):
    name = MAX_LENGTH // len(letter.encode()) * letter
    assert is_file_name(name) and not is_file_name(name + letter)
    (tmp_path / f".partial-{'h' * 64}-4194304-4194304-{name}.jpeg").touch()


@given(st.text())
def test_a_file_name_of_any_key_stays_in_its_folder(key: str) -> None:
    name = to_file_name(key)
    assert is_file_name(name)
    folder = Path("/out")
    assert (folder / name).parent == folder
    assert len(name.encode()) <= MAX_LENGTH


def test_a_long_key_of_wide_letters_is_a_name_that_file_systems_take(tmp_path):
    name = to_file_name(300 * "\N{CJK UNIFIED IDEOGRAPH-4E00}" + "7")
    assert name.endswith("7") and len(name) > 30
    (tmp_path / f".partial-{'h' * 64}-4194304-4194304-{name}.jpeg").touch()


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", fullmatch=True))
def test_a_key_that_is_a_file_name_is_kept(key: str) -> None:
    assert to_file_name(key) == key


@pytest.mark.parametrize("text", ["", "tench, Tinca tinca", "50 % or more", "größe/€", "$x$"])
def test_texts_that_are_only_shown_may_have_any_printable_characters(text: str) -> None:
    assert check_text("class", text) == text


@pytest.mark.parametrize(
    "text",
    [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian, with a non-joiner
        "\U0001f469\u200d\U0001f52c",  # an emoji of two, joined
        "5\N{NO-BREAK SPACE}km",
        "\u6a29\N{IDEOGRAPHIC SPACE}\u6a2b",
        "co\N{SOFT HYPHEN}operate",
    ],
)
def test_joiners_and_spaces_of_other_scripts_are_text_and_are_escaped_when_shown(text: str) -> None:
    assert check_text("class", text) == text
    assert printable(text) != text and printable(text).isprintable()


@pytest.mark.parametrize(
    "text",
    ["a\nb", "\x1b[2J", "\x7f", "\x9b2J", "\u202a", "\u202e", "\u2066", "\u2069", "\ud800",
     (MAX_TEXT + 1) * "x"],
)  # fmt: skip
def test_other_texts_are_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"^class is .*, must be at most 500 characters that are"):
        check_text("class", text)


@given(st.text())
def test_a_key_is_shown_on_one_short_line(key: str) -> None:
    assert one_line(key).isprintable() and len(one_line(key)) <= 80


@given(st.text())
def test_shown_text_has_no_control_characters(text: str) -> None:
    assert all(c.isprintable() or c in "\n\t" for c in printable(text))
    if text.isprintable():
        assert printable(text) == text
