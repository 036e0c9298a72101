"""Groups that one run finds and others train, by the commands that a user types."""

import json

import pytest


@pytest.fixture(scope="module")
def first(dmtg, rooms_yaml, tmp_path_factory):
    """A run that has decided its groups."""
    out = tmp_path_factory.mktemp("first") / "run"
    short = ("run.steps=4", "run.checkpoint_every=2", "log.every=1", "pruning.every=1")
    end = dmtg("train", rooms_yaml, f"run.out={out}", *short)
    assert end.code == 0, end.stderr
    return out


def groups_of(run):
    return sorted(map(sorted, json.loads((run / "result.json").read_text())["groups"]))


def test_groups_are_written_and_trained_by_another_run(first, dmtg, rooms_yaml, tmp_path):
    path, model = tmp_path / "groups.json", tmp_path / "model.safetensors"
    end = dmtg("groups", first, "--out", path)
    assert end.code == 0, end.stderr
    assert end.stdout.split() == [
        "groups:",
        str(path),
        "tasks:",
        "6",
        "decided:",
        "6",
        "step:",
        "4",
    ]
    assert sorted(map(sorted, json.loads(path.read_text())["groups"])) == groups_of(first)
    assert dmtg("export", first, "--out", model).code == 0
    for number, source in enumerate((path, first, first / "result.json", model)):
        out = tmp_path / f"run-{number}"
        end = dmtg(
            "train", rooms_yaml, "grouping.recipe=fixed", f"grouping.groups={source}",
            "run.steps=1", f"run.out={out}",
        )  # fmt: skip
        assert end.code == 0, end.stderr
        assert groups_of(out) == groups_of(first)
        again = tmp_path / f"again-{number}.json"
        assert dmtg("groups", out, "--out", again, "--json").code == 0
        assert (
            json.loads(again.read_text())["groups"]
            == json.loads((out / "result.json").read_text())["groups"]
        )


def test_groups_do_not_replace_a_file(first, dmtg, tmp_path):
    path = tmp_path / "groups.json"
    path.write_text("mine")
    end = dmtg("groups", first, "--out", path)
    assert end.code == 2 and f"{path}: exists and would be replaced by the groups" in end.stderr
    assert path.read_text() == "mine"
    assert dmtg("groups", first, "--out", path, "--overwrite").code == 0
    assert "groups" in json.loads(path.read_text())


def test_hoa_trains_pairs_and_then_their_groups(dmtg, rooms_yaml, tmp_path):
    out = tmp_path / "run"
    arguments = (
        "train", rooms_yaml, "grouping.recipe=hoa", "run.steps=5", f"run.out={out}",
        "tasks.names=[normal, has_sphere, num_solids]", "tasks.define={}", "log.trackers=[]",
    )  # fmt: skip
    end = dmtg(*arguments)
    assert end.code == 0, end.stderr
    for number in (1, 2, 3):
        assert f"recipe hoa: run {number} of 3 of the search for groups" in end.stderr
    found = json.loads((out / "search" / "groups.json").read_text())
    assert groups_of(out) == sorted(map(sorted, found["groups"]))
    assert f"recipe hoa: {len(found['groups'])} groups are in {out}/search" in end.stderr
    end = dmtg(*arguments)
    assert end.code == 2 and "already holds a run; set run.resume=auto" in end.stderr
    assert dmtg(*arguments, "run.resume=auto").code == 0
