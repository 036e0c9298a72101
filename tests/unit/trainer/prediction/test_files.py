"""Files, folders, patterns and lists become photos, each once and with a name of its own."""

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import UserError
from trainer.prediction.files import PhotoFile, find_photos, names_of

TREE = (
    "a/1.jpg", "a/2.PNG", "b/1.jpg", "b/1.png", "b/notes.txt", "b/.hidden.png", ".git/3.png",
    "out/old.png", "out/deep/old.png",
)  # fmt: skip


@pytest.fixture
def tree(tmp_path):
    for name in TREE:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


def found(tree, *inputs, lists=()):
    photos = find_photos(map(str, inputs), lists, tree / "out")
    return {str(photo.path.relative_to(tree)): name for photo, name in
            zip(photos, names_of(photos), strict=True)}  # fmt: skip


def test_a_folder_is_searched_but_not_its_hidden_files_and_not_the_outputs(tree):
    assert found(tree, tree) == {
        "a/1.jpg": "a/1", "a/2.PNG": "a/2", "b/1.jpg": "b/1.jpg", "b/1.png": "b/1.png"
    }  # fmt: skip


def test_files_have_their_names_and_where_these_are_equal_their_folders(tree):
    assert found(tree, tree / "a/1.jpg", tree / "a/2.PNG") == {"a/1.jpg": "1", "a/2.PNG": "2"}
    assert found(tree, tree / "a/1.jpg", tree / "b/1.jpg") == {"a/1.jpg": "a/1", "b/1.jpg": "b/1"}
    assert found(tree, tree / "b/1.png", tree / "b/1.jpg") == {
        "b/1.png": "1.png", "b/1.jpg": "1.jpg"
    }  # fmt: skip


def test_patterns_match_photos_only(tree):
    assert found(tree, tree / "**" / "1.*") == {
        "a/1.jpg": "a/1", "b/1.jpg": "b/1", "b/1.png": "1.png"
    }  # fmt: skip
    assert found(tree, tree / "b" / "*") == {"b/1.jpg": "1.jpg", "b/1.png": "1.png"}
    with pytest.raises(UserError, match=r"\*\.gif: no photo has a path of this pattern"):
        find_photos([f"{tree}/*.gif"], [], tree / "out")


def test_lists_and_the_standard_input(tree, tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text(f"{tree}/a/1.jpg\n\n{tree}/b\n")
    expected = {"a/1.jpg", "b/1.jpg", "b/1.png"}
    assert found(tree, lists=[str(tmp_path / "list.txt")]).keys() == expected
    monkeypatch.setattr("sys.stdin", io.StringIO((tmp_path / "list.txt").read_text()))
    assert found(tree, tree / "a", lists=["-"]).keys() == expected | {"a/2.PNG"}
    with pytest.raises(UserError, match=r"--list .*absent: cannot be read: No such file"):
        find_photos([], [str(tmp_path / "absent")], tree / "out")
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(UserError, match=r"--list .*list\.txt: is empty"):
        find_photos([], [str(tmp_path / "list.txt")], tree / "out")


def test_a_photo_that_is_named_twice_is_found_once(tree, monkeypatch):
    monkeypatch.chdir(tree)
    photos = find_photos(["a/1.jpg", "a", f"{tree}/a/1.jpg", "a/../a/2.PNG"], [], Path("out"))
    assert [str(photo.path) for photo in photos] == ["a/1.jpg", "a/2.PNG"]


def test_what_cannot_be_found_is_named(tree):
    with pytest.raises(UserError, match=r"absent\.png: no such file or folder"):
        find_photos([f"{tree}/absent.png"], [], tree / "out")
    (tree / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no photos in this folder$"):
        find_photos([f"{tree}/empty"], [], tree / "out")
    (tree / "empty" / "manifest.json").touch()
    with pytest.raises(UserError, match=r"a folder of shards: name it with --shards"):
        find_photos([f"{tree}/empty"], [], tree / "out")
    with pytest.raises(UserError, match=r"IMAGES: none given; name files, folders"):
        find_photos([], [], tree / "out")


PARTS = st.sampled_from(["a", "A", "b"])
PATHS = st.tuples(st.lists(PARTS, max_size=3), st.sampled_from(["1.jpg", "1.png", "2.jpg", "1.1"]))


@given(st.lists(PATHS, min_size=1, max_size=8))
def test_names_are_unique_and_stay_in_the_folder(paths):
    """Also on a file system that ignores case, unless that of the inputs does not."""
    full = list(dict.fromkeys("/".join(["", "top", *folders, name]) for folders, name in paths))
    photos = [PhotoFile(Path(path), (Path(path).name,)) for path in full]
    names = names_of(photos)
    if len({path.casefold() for path in full}) == len(full):
        assert len({name.casefold() for name in names}) == len(full)
    assert len(set(names)) == len(full)
    assert not any(os.path.isabs(name) or ".." in name.split("/") for name in names)
