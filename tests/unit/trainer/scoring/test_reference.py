import pytest

from trainer.errors import UserError
from trainer.scoring.reference import read_reference, write_reference


def test_round_trip_into_a_new_folder(tmp_path):
    metrics = {"a": {"error": 0.125, "f1": 1 / 3}, "b": {"mae": 2e-7}}
    path = tmp_path / "new" / "reference.json"
    write_reference(path, metrics)
    assert read_reference(path) == metrics
    assert [result.name for result in path.parent.iterdir()] == ["reference.json"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/reference\.json: cannot be written: "):
        write_reference(tmp_path / "file" / "reference.json", {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON: Expecting property name"),
        ("[1]", "holds a list, must hold .*task.*metric.*number"),
        ('{"scores": [1]}', "task 'scores' is a list, the file must hold"),
        ('{"a": {"error": "0.1"}}', "'error' of task 'a' is '0.1', must be a number"),
        ('{"a": {"error": true}}', "'error' of task 'a' is True, must be a number"),
        ('{"a": {"error": null}}', "'error' of task 'a' is None, must be a number"),
    ],
)
def test_other_content_is_named(tmp_path, content, message):
    path = tmp_path / "reference.json"
    path.write_text(content)
    with pytest.raises(UserError, match=f"reference.json: {message}"):
        read_reference(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: cannot be read: No such file"):
        read_reference(tmp_path / "none.json")


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "m.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"m\.json: is not JSON"):
        read_reference(tmp_path / "m.json")
