"""What a YAML text means here, and that a dumped text means the same."""

import pytest

from dmtg.yaml_text import YamlError, dump_yaml, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 3e-4", {"a": 3e-4}),
        ("a: 3:10", {"a": "3:10"}),
        ("a: 0x10", {"a": 16}),
        ("a: yes", {"a": True}),
        ("a: .inf", {"a": float("inf")}),
        ("- &x {a: 1}\n- {<<: *x, a: 2}\n- {<<: *x, b: 3}", [{"a": 1}, {"a": 2}, {"a": 1, "b": 3}]),
        ("a: 1\n'1': 2\n1: 3", {"a": 1, "1": 2, 1: 3}),
        ("{a: {x: 1}, b: {x: 1}}", {"a": {"x": 1}, "b": {"x": 1}}),
    ],
)
def test_values(text, value):
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "this is not YAML: line "),
        ("a: 1\n---\nb: 2", "this is not YAML: line 2: expected a single document"),
        ("a: 2024-13-45", "this is not YAML: month must be in 1..12"),
        ("a: !!int abc", "this is not YAML: invalid literal"),
        ("a: " + "9" * 5000, "this is not YAML: Exceeds the limit"),
        ("a: \x00", "this is not YAML: "),
        ("a: *b", "this is not YAML: line 1: found undefined alias"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("? [a]\n: 1", "this is not YAML: line 1: while constructing a mapping"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(YamlError) as error:
        parse_yaml(text)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "value",
    [
        {"a": "3e-4", "b": 3e-4, "c": "1e3", "d": "3:10", "e": "0x1", "f": 1e-300, "g": 10**12},
        {"z": [1, None, True, "yes", "null", ""], "a": {"é": "\x1b[31m", "b": "a\nb"}},
        ["~", "!x", "&y", "*z", "<<", "#", " a", "- b"],
    ],
)
def test_a_dumped_value_is_read_again(value):
    assert parse_yaml(dump_yaml(value)) == value
    assert parse_yaml(dump_yaml(value, compact=True)) == value
    assert list(parse_yaml(dump_yaml({"z": 1, "a": 2}))) == ["z", "a"]


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: \xff")
    with pytest.raises(YamlError, match="byte 3 is not UTF-8"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1}
