"""The sources that a manifest names: checked as every other entry of it."""

import json
import time

import pytest

from data_pipelines.convert.mix import mix_shards
from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Manifest


@pytest.fixture(scope="module")
def mixed(rooms, digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("mix") / "mix"
    mix_shards([str(rooms), str(digits)], out, progress=False)
    return out


def with_changes(mixed, tmp_path, change):
    content = json.loads((mixed / "manifest.json").read_text()) | {"checksum": None}
    change(content)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    return tmp_path


def renamed(name):
    def change(content):
        content["sources"][name] = content["sources"].pop("rooms")
        for split in content["splits"].values():
            for shard in split["shards"]:
                shard["source"] = name if shard["source"] == "rooms" else shard["source"]

    return change


@pytest.mark.parametrize(
    "name", ["../rooms", "a/b", "..", ".hidden", "-o", "", "a b", "x" * 51, "a\x1b[2J", "a\n"]
)
def test_a_name_that_leaves_its_folder_or_controls_the_terminal_is_refused(mixed, tmp_path, name):
    folder = with_changes(mixed, tmp_path, renamed(name))
    with pytest.raises(DataError, match=r"manifest\.json: sources\."):
        Manifest.load(folder)


def shard_of(content):
    return content["splits"]["train"]["shards"][0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: shard_of(c).update(source="other"), "'other': must be one of"),
        (lambda c: shard_of(c).pop("source"), "None: must be one of"),
        (lambda c: c.pop("sources"), "source 'rooms': there are none"),
        (lambda c: c["sources"]["rooms"]["fields"].pop(c["image"]), "image, 'rgb', is missing"),
        (
            lambda c: c["sources"]["rooms"]["fields"].update(gift={"member": "a.png"}),
            r"\['gift'\]: no such fields",
        ),
        (
            lambda c: c["sources"]["rooms"]["fields"]["has_box"].update(member="a.png"),
            "fields.has_box: member 'a.png' and key .* needs a json or cls member",
        ),
        (
            lambda c: c["sources"]["rooms"]["fields"]["has_box"].update(member="../a.json"),
            "fields.has_box.member: '../a.json'",
        ),
        (
            lambda c: c["sources"]["rooms"]["fields"]["has_box"].update(values={"x": 7}),
            r"values\.x 7: must be an integer from 0 to 1",
        ),
        (
            lambda c: c["sources"]["rooms"]["fields"][c["image"]].update(member="a.py"),
            "kind image needs a member that ends with",
        ),
    ],
)
def test_entries_that_do_not_fit_are_refused(mixed, tmp_path, change, words):
    with pytest.raises(DataError, match=words):
        Manifest.load(with_changes(mixed, tmp_path, change))


def test_many_sources_of_a_field_with_many_classes_take_no_long_time(mixed, tmp_path):
    """Names of classes are checked once, not for each source."""

    def change(content):
        classes = [str(n) for n in range(100_000)]
        content["fields"]["order"] = content["fields"]["order"] | {"classes": classes}
        for split in content["splits"].values():
            split["class_counts"].pop("order", None)
        digits = content["sources"]["digits"]
        fields = {name: digits["fields"][name] for name in (content["image"], "order")}
        content["sources"] |= {f"s{n}": digits | {"fields": fields} for n in range(10_000)}

    folder = with_changes(mixed, tmp_path, change)
    start = time.process_time()
    assert len(Manifest.load(folder).sources) == 10_002
    assert time.process_time() - start < 20
