"""The embedded drawings: unchanged, without logos, variants in one split; their tasks."""

from __future__ import annotations

import hashlib
import json
import lzma
import re
from collections import defaultdict
from pathlib import Path

import pytest

from data_pipelines.errors import DataError
from data_pipelines.synthetic.icons.icon_set import FILE, SPLITS, Icon, load_icons
from data_pipelines.synthetic.icons.tasks import labels, task_names
from dmtg.names import is_file_name

CONTENT = "0941865647002129c085e2af51fe92e9dbc683e57943bde7b00f21d8017cc5d6"
PACKAGE = "de92e5dc9ce46c392ab5c53aa7190b19f82b40cb48872a083f788c7e13e91fef"


@pytest.fixture(scope="module")
def icons() -> dict[str, Icon]:
    return {icon.name: icon for icon in load_icons()}


@pytest.fixture(scope="module")
def tasks(icons: dict[str, Icon]) -> list[str]:
    return task_names(list(icons.values()))


def test_the_file_is_the_one_that_the_notice_describes() -> None:
    text = lzma.decompress(FILE.read_bytes())
    assert hashlib.sha256(text).hexdigest() == CONTENT
    assert FILE.stat().st_size < 1_500_000
    source = json.loads(text)
    notice = (FILE.parent / "NOTICE").read_text()
    assert source["sha256"] == PACKAGE and PACKAGE in notice
    assert f"{source['package']} {source['version']}" in notice
    assert "Apache License, Version 2.0" in notice


def test_drawings_are_complete_and_safe_to_insert(icons: dict[str, Icon]) -> None:
    assert len(icons) == 7447 - 259
    assert list(icons) == sorted(icons)
    assert all(re.fullmatch("[MmLlHhVvCcSsQqTtAaZz0-9,. -]+", i.outline) for i in icons.values())
    assert icons["minus"].outline == "M19,13H5V11H19V13Z"
    assert icons["account"].aliases == ("person", "user")
    assert icons["account"].tags == ("Account / User", "Home Automation")


def test_logos_are_left_out(icons: dict[str, Icon]) -> None:
    assert not {"Brand / Logo"} & {tag for icon in icons.values() for tag in icon.tags}
    assert not {"apple", "github", "google", "twitter", "microsoft-xbox-controller"} & set(icons)


def test_no_variant_of_a_drawing_is_in_another_split(icons: dict[str, Icon]) -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for icon in icons.values():
        places[icon.name.partition("-")[0]].add(icon.split)
        places[icon.outline].add(icon.split)
    assert all(len(splits) == 1 for splits in places.values())
    # Made from another drawing, or equal to it, under another first word.
    for one, other in (("ambulance", "truck"), ("cogs", "cog"), ("cards-heart", "heart")):
        assert icons[one].split == icons[other].split


def test_the_splits_have_the_documented_sizes(icons: dict[str, Icon]) -> None:
    found = [icon.split for icon in icons.values()]
    assert {split: found.count(split) for split in SPLITS} == {
        "train": 5032, "val": 1078, "test": 1078,
    }  # fmt: skip


def test_every_task_can_be_learned_and_measured(icons: dict[str, Icon], tasks: list[str]) -> None:
    assert len(tasks) == len(set(tasks)) == 103
    assert all(map(is_file_name, tasks)) and all(map(str.isidentifier, tasks))
    assert {"outline", "lock", "tag_device_tech", "tag_transportation_road"} < set(tasks)

    def has(icon: Icon, task: str) -> bool:
        tags = [re.sub(" [/+] | ", "_", tag).lower() for tag in icon.tags]
        return task in (*icon.name.split("-"), *(f"tag_{tag}" for tag in tags))

    for split, least in (("train", 12), ("val", 4), ("test", 4)):
        of_split = [icon for icon in icons.values() if icon.split == split]
        for task in tasks:
            assert sum(has(icon, task) for icon in of_split) >= least, (task, split)


def test_tasks_are_words_and_then_tags_in_order(tasks: list[str]) -> None:
    words = [task for task in tasks if not task.startswith("tag_")]
    tags = tasks[len(words) :]
    assert words == sorted(words) and tags == sorted(tags)
    assert all(tag.startswith("tag_") for tag in tags) and len(words) == 55


def test_labels_of_known_icons(icons: dict[str, Icon], tasks: list[str]) -> None:
    plus = labels(icons["account-plus-outline"], tasks)
    assert {task for task, value in plus.items() if value} == {
        "account", "plus", "outline", "tag_account_user",
    }  # fmt: skip
    assert len(plus) == len(tasks) and set(plus.values()) == {0, 1}
    # Its aliases are clear, multiply, remove, cancel and times.
    close = labels(icons["close"], tasks)
    assert set(tasks) - set(close) == {"remove", "cancel"}
    assert close["tag_math"] == close["tag_form"] == 1


@pytest.mark.parametrize("content", [None, b"", b"no xz", lzma.compress(b"{")])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "icons.json.xz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"icons\.json\.xz: cannot be read .*install dmtg again"):
        load_icons(path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    data = bytearray(FILE.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "icons.json.xz").write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        load_icons(tmp_path / "icons.json.xz")
